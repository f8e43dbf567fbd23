"""What a worker reports, as `ksi_completion.workers` describes it; parsed once, where it comes in."""

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from ksi_common.events.completion import Usage
from ksi_common.messages import Message
from ksi_completion.providers.interface import FailureClass, ProviderFailure


class Ready(Message):
    """It can be asked."""

    report: Literal["ready"]


class Delta(Message):
    """A piece of an answer."""

    report: Literal["delta"]
    id: str
    text: str


class Done(Message):
    """A whole answer. ``dropped_messages``: how many of the oldest the model was not shown."""

    report: Literal["done"]
    id: str
    text: str
    finish_reason: str
    model: str
    usage: Usage
    dropped_messages: int = 0


class Failed(Message):
    """An order that comes to nothing; without ``id``, the worker itself."""

    report: Literal["failed"]
    id: str | None
    kind: FailureClass
    reason: str
    message: str
    retry_after_s: float | None = None

    def failure(self) -> ProviderFailure:
        """Give it as what a provider raises."""
        return ProviderFailure(
            self.message, reason=self.reason, kind=self.kind, retry_after_s=self.retry_after_s
        )


class Stopped(Message):
    """Nothing works on a cancelled answer any more."""

    report: Literal["stopped"]
    id: str


Report = Ready | Delta | Done | Failed | Stopped

REPORT: Final[TypeAdapter[Report]] = TypeAdapter(Annotated[Report, Field(discriminator="report")])
