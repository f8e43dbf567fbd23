"""``correlation:*``: what one request led to, as the log has it."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from ksi_common.errors import NotFound
from ksi_common.messages import Message, Request

CorrelationId = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class OfCorrelation(Message):
    """Asks for one correlation id, or for that of the request itself."""

    correlation_id: CorrelationId | None = Field(
        None, description="Which one; default: that of this request.", examples=["no-such-id"]
    )


class Step(Message):
    """One event of a correlation. Times are RFC 3339."""

    event_id: str
    event_name: str
    kind: Literal["notification", "request"]
    causation_id: str | None
    depth: int
    """Events between it and the first: 0 is one that nothing of this correlation led to."""
    created_at: str
    elapsed_ms: float
    """Since the first event of the correlation."""
    actor: str
    stream: str | None
    seq: int


class Chain(Message):
    """The events of a correlation id, in the order of the log."""

    correlation_id: str
    chain_length: int
    """How many this reply has."""
    chain: list[Step]
    truncated: bool = False
    """There are more than were asked for, or than a reply can have."""
    damaged: int = 0
    """Events that were left out, as they are damaged: event:verify names them."""


class GetChain(OfCorrelation, Request[Chain], event="correlation:chain", safe=True):
    """List what one request led to, in the order of the log."""

    limit: Annotated[int, Field(ge=1, le=10_000)] = Field(1000, description="Events at most.")


class Branch(Step):
    """An event and what it led to. ``depth`` is the true one, also where nesting ends, at 30."""

    children: list[JsonValue]
    """Each an object like this one."""


class Tree(Message):
    """The events of a correlation id, each below its cause."""

    correlation_id: str
    tree: list[Branch]
    """Those that nothing of this correlation led to: one, unless several requests gave the same id."""
    count: int
    truncated: bool = False
    """There are more than 10,000, or than a reply can have."""
    damaged: int = 0
    """Events that were left out, as they are damaged: event:verify names them."""


class GetTree(OfCorrelation, Request[Tree], event="correlation:tree", safe=True):
    """Show what one request led to, each event below its cause."""


class Trace(Message):
    """One request and what directly came of it. Times are RFC 3339.

    The log has no answers of requests. ``result`` is the data of the last event told with it whose name ends
    in ``:result``, ``error`` that of the last one in ``:failed`` or ``:cancelled``.
    """

    correlation_id: str
    parent_id: str | None
    """What led to the request, in another correlation."""
    event_name: str
    created_at: str
    completed_at: str
    """Of the last event of the correlation, so far."""
    duration_ms: float
    """Between these two."""
    data: JsonValue
    """Of the first event; null where it is a request, of which the log has the digest."""
    children: list[Step]
    """What it directly led to; at most 1,000."""
    events: int
    """In the correlation."""
    result: JsonValue = None
    error: JsonValue = None
    truncated: bool = False
    """There are more than 10,000; what is said is of the first ones."""
    damaged: int = 0
    """Events that were left out, as they are damaged: event:verify names them."""


class GetTrace(OfCorrelation, Request[Trace], event="correlation:trace", safe=True, raises=(NotFound,)):
    """Tell how one request went: when, how long, and what it directly led to."""


class Widest(Message):
    """A correlation and its size."""

    correlation_id: str
    events: int
    duration_ms: float


class Figures(Message):
    """Of the newest events."""

    events: int
    """How many were looked at: 10,000 at most."""
    correlations: int
    mean_events: float
    """In a correlation."""
    mean_duration_ms: float
    """Between the first and the last event of one."""
    largest: list[Widest]
    """The ten with the most events."""
    since: str | None
    """Time of the oldest event looked at."""


class Stats(Message):
    """Figures of the correlations of late."""

    correlation_stats: Figures


class GetStats(Request[Stats], event="correlation:stats", safe=True):
    """Tell figures of the correlations among the newest events."""


class Current(Message):
    """The ids of the request itself."""

    current_correlation_id: str
    parent_correlation_id: str | None
    """That of the event that led to it, where the log has that and it is another."""
    event_id: str
    causation_id: str | None


class GetCurrent(Request[Current], event="correlation:current", safe=True):
    """Tell the ids that this very request has."""
