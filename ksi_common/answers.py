"""What a request that several plugins answer comes to: one answer of each, or why it gave none.

class Suggest(Request[Answers[Suggestion]], event="chat:suggest", answers="all", safe=True):
    '''Ask everybody for a next line.'''
"""

from typing import Any, Generic, TypeVar

from pydantic import Field, JsonValue

from ksi_common.errors import KSIError, error_from_wire
from ksi_common.messages import Message

R = TypeVar("R", bound=Message)


class Refusal(Message):
    """Why a plugin gave no answer; the fields of an error on the wire."""

    code: str
    message: str
    retryable: bool = False
    hint: str | None = None
    details: dict[str, JsonValue] = Field(default_factory=dict)

    def error(self) -> KSIError:
        """Give the exception."""
        return error_from_wire(self.model_dump())


class Answer(Message, Generic[R]):
    """What one plugin said: ``value`` or ``error``."""

    plugin: str
    value: R | None = None
    error: Refusal | None = None


class Answers(Message, Generic[R]):
    """What all of them said, in the order in which the plugins were loaded."""

    answers: list[Answer[R]]

    @property
    def values(self) -> list[R]:
        """Give the answers that are none but answers."""
        return [answer.value for answer in self.answers if answer.value is not None]


def refusal_of(error: KSIError) -> Refusal:
    """Put an error among the answers."""
    wire: dict[str, Any] = error.to_wire()
    return Refusal.model_construct(**wire)
