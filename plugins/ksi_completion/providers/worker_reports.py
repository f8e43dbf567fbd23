"""What a worker reports, as `ksi_completion.workers` describes it; parsed once, where it comes in."""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter

from ksi_common.events.completion import Usage
from ksi_common.messages import Message
from ksi_completion.providers.interface import FailureClass, ProviderFailure
from ksi_completion.providers.statuses import classified


class Ready(Message):
    """It can be asked."""

    report: Literal["ready"]


class Delta(Message):
    """A piece of an answer."""

    report: Literal["delta"]
    id: str
    text: str


class Done(Message):
    """A whole answer. ``dropped_messages``: how many of the oldest the model was not shown.

    ``tool_calls``: what the model wants of the caller's tools, as the OpenAI API has it.
    """

    report: Literal["done"]
    id: str
    text: str
    finish_reason: str
    model: str
    usage: Usage
    dropped_messages: int = 0
    tool_calls: list[JsonValue] = Field(default_factory=list)


class Failed(Message):
    """An order that comes to nothing; without ``id``, the worker itself.

    Without ``kind`` and ``reason`` the ``status``, of HTTP, says what they are.
    """

    report: Literal["failed"]
    id: str | None
    kind: FailureClass | None = None
    reason: str | None = None
    status: int | None = None
    message: str
    retry_after_s: float | None = None

    def failure(self) -> ProviderFailure:
        """Give it as what a provider raises."""
        kind, reason = classified(self.status or 500)
        return ProviderFailure(
            self.message,
            reason=self.reason or reason,
            kind=self.kind or kind,
            retry_after_s=self.retry_after_s,
        )


class Stopped(Message):
    """Nothing works on a cancelled answer any more."""

    report: Literal["stopped"]
    id: str


Report = Ready | Delta | Done | Failed | Stopped

REPORT: Final[TypeAdapter[Report]] = TypeAdapter(
    Annotated[Report, Field(discriminator="report")], config=ConfigDict(defer_build=True)
)
