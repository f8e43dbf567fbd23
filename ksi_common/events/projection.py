"""``projection:*``: state that is made of the log: how far it is, what it says, and how to make it again."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from ksi_common.errors import FailedPrecondition, NotFound
from ksi_common.events.types import EventPattern
from ksi_common.messages import Message, Notification, Request

ProjectionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Key = str | int | Annotated[list[str | int], Field(min_length=1, max_length=16)]
"""Of a document; or the primary key of a row, a list where that has several columns."""


class ProjectionStatus(Message):
    """One projection, and how far it is."""

    name: str
    plugin: str
    kind: Literal["document", "table"]
    version: int
    """Of its code; another one on disk is built again."""
    patterns: list[EventPattern]
    status: Literal["building", "following", "rebuilding", "stopped"]
    position: int
    """Everything up to this ``seq`` is in what readers see."""
    lag_events: int
    """Events that it has not looked at."""
    lag_s: float
    """Seconds since the oldest of them was told."""
    missing: int
    """Positions of the log that it could not have: damaged, or deleted by retention."""
    rebuilt_to: int | None
    """How far the state is that is being built beside it; None: none is."""
    error: str | None
    """Why it stopped: an event that its code cannot take."""


class ProjectionList(Message):
    """Every projection, by name."""

    projections: list[ProjectionStatus]
    count: int


class List(Request[ProjectionList], event="projection:list", safe=True):
    """List projections and how far each is."""


class ProjectionDetails(ProjectionStatus):
    """A projection, and what it says under a key."""

    found: bool
    value: JsonValue
    """The document, or the row by its columns; null where there is none."""


class Get(
    Request[ProjectionDetails], event="projection:get", safe=True, raises=(NotFound, FailedPrecondition)
):
    """Tell how far a projection is, and what it says."""

    name: ProjectionName = Field(description="Which one.", examples=["state_values"])
    key: Key | None = Field(
        None, description="Which document or row; a list where the primary key has several columns."
    )
    cursor: str | None = Field(None, description="Answer once the event of this cursor is in it.")


class Entry(Message):
    """A document or row, and its key."""

    key: JsonValue
    value: JsonValue


class Entries(Message):
    """A page of a projection."""

    entries: list[Entry]
    count: int
    next: Key | None = None
    """Give it as ``after`` to read on; None at the end."""


class Query(Request[Entries], event="projection:query", safe=True, raises=(NotFound, FailedPrecondition)):
    """Read documents or rows of a projection, in the order of their keys."""

    name: ProjectionName = Field(description="Which one.", examples=["state_values"])
    where: dict[str, JsonValue] = Field(
        default_factory=dict, description="Only rows whose columns have these values; tables only."
    )
    after: Key | None = Field(None, description="Only what comes after: the ``next`` of the page before.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(100, description="Entries at most.")


class Rebuilding(Message):
    """It is being built again. Readers see the old one until ``projection:rebuilt`` is told."""

    name: str
    version: int
    generation: int


class Rebuild(Request[Rebuilding], event="projection:rebuild", raises=(NotFound, FailedPrecondition)):
    """Build a projection again from the log, beside what readers see, and swap."""

    name: ProjectionName = Field(description="Which one.", examples=["state_values"])
    partial: bool = Field(
        default=False, description="Also where the log has lost its beginning to retention."
    )


class Rebuilt(Notification, event="projection:rebuilt"):
    """From this commit on readers see what was built."""

    name: str
    version: int
    position: int
    """Everything up to this ``seq`` is in it."""
    missing: int
    """Positions of the log that it could not have."""


class Stopped(Notification, event="projection:stopped"):
    """A projection's code cannot take an event: it goes no further."""

    name: str
    event_id: str
    seq: int
    error: str
