"""``deadletter:*``: what failed for good, whatever tried it, and what a person does about it."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from ksi_common.errors import FailedPrecondition, InvalidArgument, NotFound
from ksi_common.events.types import EventPattern
from ksi_common.messages import Message, Notification, Request, Stream
from ksi_common.references import Reference

LetterKind = Literal["event", "job", "step", "message"]
LetterState = Literal["dead", "redriven", "discarded"]
LetterId = Annotated[int, Field(ge=1)]
LetterIds = Annotated[list[LetterId], Field(min_length=1, max_length=1000)]


class LetterSummary(Message):
    """A dead letter without its data."""

    id: int
    kind: LetterKind
    origin: str
    """What gave up: consumer, group, subscriber, timer, or a word of a plugin."""
    name: str
    """Which consumer, timer, ..."""
    event: str
    event_id: str | None
    stream: str | None
    correlation_id: str | None
    actor: str
    attempts: int
    """That failed."""
    reason: str
    """The machine's word for what failed last."""
    message: str
    first_failed: str
    last_failed: str
    state: LetterState
    redrives: int
    """How often it was tried again."""
    edited: bool


class Letter(LetterSummary):
    """A dead letter, whole."""

    data: JsonValue
    reference: Reference | None
    """Where the data is, if it is too large to be here."""
    original: JsonValue = None
    """The data before it was edited."""
    causation_id: str | None
    version: int | None
    time: str | None
    """When the event was told."""


class Letters(Message):
    """A page of dead letters, the oldest first. ``next``: give it as ``after`` to read on."""

    letters: list[LetterSummary]
    count: int
    next: int | None = None


class List(Request[Letters], event="deadletter:list", safe=True):
    """List dead letters: those that nobody has dealt with, unless ``state`` says otherwise."""

    kind: LetterKind | None = Field(None, description="Of this kind only.")
    origin: str | None = Field(None, description="Given up by this only.", examples=["consumer"])
    name: str | None = Field(None, description="Of the consumer, timer, ... of this name only.")
    event: EventPattern | None = Field(None, description="Of events that match only.")
    state: LetterState | None = Field("dead", description="In this state only; null: in any.")
    after: int = Field(0, ge=0, description="Beyond this id: the ``next`` of the page before.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(100, description="Letters at most.")


class Show(Request[Letter], event="deadletter:show", safe=True, raises=(NotFound,)):
    """Read one dead letter."""

    id: LetterId = Field(description="Which one.", examples=[1])


class Redrove(Message):
    """Which are tried again."""

    redriven: list[int]
    already: list[int]
    """Those that were, and have not failed since."""


class Redrive(
    Request[Redrove], event="deadletter:redrive", idempotent=True, raises=(NotFound, FailedPrecondition)
):
    """Try dead letters again, all or none: by the same consumer or timer, with attempts counted anew."""

    ids: LetterIds = Field(description="Which ones.", examples=[[1]])


class Edit(Request[Letter], event="deadletter:edit", raises=(NotFound, FailedPrecondition, InvalidArgument)):
    """Change the data of a dead letter before it is tried again.

    The event in the log stays as it is. What is given again is another event: it has an id of its own, and
    the first one as its cause. What a plugin declares of an event holds for the new data, too. A completion
    keeps its data itself, and cannot be edited.
    """

    id: LetterId = Field(description="Which one.", examples=[1])
    data: dict[str, JsonValue] = Field(description="What it is to say.", examples=[{"n": 2}])


class Discards(Message):
    """Which are discarded."""

    discarded: list[int]
    already: list[int]


class Discard(
    Request[Discards], event="deadletter:discard", idempotent=True, raises=(NotFound, FailedPrecondition)
):
    """Give dead letters up. They are kept, and can be listed by their state."""

    ids: LetterIds = Field(description="Which ones.", examples=[[1]])
    reason: Annotated[str, StringConstraints(max_length=1000)] = Field("", description="Why, for the record.")


class Export(Stream[Letter], event="deadletter:export", safe=True):
    """Read dead letters whole, one item each."""

    kind: LetterKind | None = Field(None, description="Of this kind only.")
    origin: str | None = Field(None, description="Given up by this only.", examples=["consumer"])
    name: str | None = Field(None, description="Of the consumer, timer, ... of this name only.")
    event: EventPattern | None = Field(None, description="Of events that match only.")
    state: LetterState | None = Field("dead", description="In this state only; null: in any.")


class Added(Notification, event="deadletter:added"):
    """Something failed for good."""

    id: int
    kind: LetterKind
    origin: str
    name: str
    event: str
    event_id: str | None
    attempts: int
    reason: str
    message: str


class Redriven(Notification, event="deadletter:redriven"):
    """A dead letter is tried again."""

    id: int
    origin: str
    name: str
    event: str
    event_id: str | None


class Edited(Notification, event="deadletter:edited"):
    """The data of a dead letter was changed."""

    id: int
    origin: str
    name: str
    event: str
    event_id: str | None
    """Of what is given when it is tried again."""


class Discarded(Notification, event="deadletter:discarded"):
    """A dead letter was given up."""

    id: int
    origin: str
    name: str
    event: str
    event_id: str | None
    reason: str
