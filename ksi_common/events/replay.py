"""``event:replay``: go through the log again, and see what it makes."""

from typing import Annotated, Literal

from pydantic import Field

from ksi_common.errors import FailedPrecondition, InvalidArgument, NotFound
from ksi_common.events.event import FromCursor, FromTime
from ksi_common.events.types import EventPattern
from ksi_common.messages import Message, Stream


class TableCompared(Message):
    """A table of the sandbox, held against the live one."""

    table: str
    plugin: str
    rows: int
    """Rows that are the same, byte for byte, from the first on."""
    difference: str | None
    """The first difference; None: there is none."""


class TableLeftOut(Message):
    """A table that no plugin says how to make of the log: it is neither in the sandbox nor compared."""

    table: str
    plugin: str


class Replayed(Message):
    """How far it is. The last one has ``done``."""

    applied: int
    """Events that were replayed."""
    position: int
    """Everything up to this ``seq`` was looked at."""
    end: int
    """The ``seq`` that it goes to."""
    missing: int = 0
    """Positions of the log that it could not have: damaged, or deleted by retention."""
    failed: int = 0
    """Events that the handler raised at."""
    error: str | None = None
    """The first error of the handler."""
    held_back: int = 0
    """Effects of the handler that were held back: units of work taken back, events not told."""
    done: bool = False
    tables: list[TableCompared] = Field(default_factory=list)
    """What came of a sandbox."""
    not_compared: list[TableLeftOut] = Field(default_factory=list)
    """What a sandbox cannot have: its first difference from what is live may lie there."""
    socket: str | None = None
    """Where a sandbox that is kept answers."""


class Replay(
    Stream[Replayed],
    event="event:replay",
    recorded=False,
    raises=(NotFound, FailedPrecondition, InvalidArgument),
):
    """Replay the log: into a sandbox and compare, into a projection, or into a subscriber of a plugin.

    A sandbox is a daemon of its own, a child process in a home of its own, made of the whole log (from the
    last snapshot on, where retention needed one) and compared with what is live, byte for byte. Its effects
    are off: no timer, subscriber or worker runs there, and it answers only what is safe. A projection is
    built again of the whole log, beside what readers see. A handler gets the events that it subscribes to;
    what it would write, tell or ask is held back, unless ``effects`` are wished.
    """

    into: Literal["sandbox", "projection", "handler"] = Field("sandbox", description="What is to get them.")
    name: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Of the projection; or of the handler: plugin.function, as plugin:inspect says."
    )
    start: FromCursor | FromTime | None = Field(None, description="Where to begin; default: the beginning.")
    end: FromCursor | FromTime | None = Field(None, description="Where to end; default: what is there now.")
    patterns: list[EventPattern] = Field(
        default_factory=list, description="Only events that match; none: all that the handler takes."
    )
    effects: bool = Field(default=False, description="Let the handler do what it does.")
    keep: bool = Field(
        default=False,
        description="Let the sandbox answer, at the ``socket`` of the last item, until this is cancelled.",
    )
