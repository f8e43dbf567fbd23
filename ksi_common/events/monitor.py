"""``monitor:*``: the log under the names that users of the first KSI know."""

from typing import Annotated, Literal

from pydantic import Field

from ksi_common.errors import NotFound
from ksi_common.events.correlation import Chain, OfCorrelation
from ksi_common.events.event import Damaged, Event, Subscribed
from ksi_common.events.types import EventPattern, Name, Time
from ksi_common.messages import Message, Request, Stream, renamed_from

Moment = Time | Annotated[float, Field(ge=0, le=253_402_300_799)]
"""RFC 3339 with an offset, or seconds since 1970."""

Patterns = Annotated[list[EventPattern], Field(max_length=256)]


class Subscribe(Stream[Subscribed], event="monitor:subscribe", safe=True):
    """Follow events from now on, until monitor:unsubscribe.

    The items and marks are those of event:subscribe, which can begin elsewhere in the log; their cursors
    are good for it.
    """

    event_patterns: Annotated[list[EventPattern], Field(min_length=1, max_length=256)] = Field(
        ["*"], description="Names or beginnings of names.", examples=[["state:*"]]
    )
    agent_id: Name | None = renamed_from(
        "client_id", "agent_id", None, description="For whom: monitor:unsubscribe may name it."
    )
    subscription_id: Name | None = Field(
        None, description="Your name of this subscription: monitor:unsubscribe may name it."
    )


class Unsubscribed(Message):
    """How many subscriptions of this connection have ended by it."""

    status: Literal["unsubscribed", "not_found"]
    agent_id: str | None
    subscription_id: str | None
    ended: int


class Unsubscribe(Request[Unsubscribed], event="monitor:unsubscribe", idempotent=True, recorded=False):
    """End what monitor:subscribe began on this connection: all of it, or of one agent, or one of a name.

    Each ends as any stream does; answered when all have.
    """

    agent_id: Name | None = renamed_from(
        "client_id", "agent_id", None, description="Those of this agent only."
    )
    subscription_id: Name | None = Field(None, description="Those of this name only.")


class EventsQuery(Message):
    """What was asked for, as it was understood. Times are RFC 3339."""

    event_patterns: list[str]
    agent_id: str | None
    since: str | None
    until: str | None
    limit: int
    reverse: bool


class EventsFound(Message):
    """A page of events."""

    events: list[Event]
    count: int
    """How many events this reply has."""
    total_events: int
    """How many the log has had so far, of any kind."""
    query: EventsQuery
    next: str | None = None
    """Give it as ``cursor`` to read on; None at the end."""
    damaged: list[Damaged] = Field(default_factory=list)
    """What was left out, as it is damaged."""


class GetEvents(Request[EventsFound], event="monitor:get_events", safe=True):
    """Search the log, the newest first; event:query can do the same by correlation, stream and kind."""

    event_patterns: Patterns = Field(
        default_factory=list, description="Names or beginnings of names; none: all.", examples=[["state:*"]]
    )
    agent_id: Name | None = renamed_from(
        "client_id", "agent_id", None, description="Told or asked by this actor only."
    )
    since: Moment | None = Field(
        None, description="Not before this time: RFC 3339 with an offset, or seconds since 1970."
    )
    until: Moment | None = Field(
        None, description="Before this time: RFC 3339 with an offset, or seconds since 1970."
    )
    limit: Annotated[int, Field(ge=1, le=10_000)] = Field(
        100, description="Events at most; a reply has about 2 MiB at most, too."
    )
    reverse: bool = Field(default=True, description="Newest first.")
    cursor: str | None = Field(None, description="After this one: the ``next`` of the page before.")


class SessionEvents(Message):
    """What the log has of a session's completions: their requests, and what was told of each."""

    session_id: str
    events: list[Event]
    count: int
    sources: list[str]
    """The streams that they are from, one a completion."""
    next_offset: int | None = None
    """Give it as ``offset`` to read on; None at the end."""
    damaged: int = 0
    """Events that were left out, as they are damaged: event:verify names them."""


class GetSessionEvents(
    Request[SessionEvents], event="monitor:get_session_events", safe=True, raises=(NotFound,)
):
    """Read the events of one session of completions.

    Which completions it has is asked of conversation:get, so a page is measured in messages. What else came
    of a completion has its correlation id: correlation:tree.
    """

    session_id: Name = Field(description="Which one.", examples=["no-such-session"])
    reverse: bool = Field(default=True, description="The end of the session, newest first.")
    limit: Annotated[int, Field(ge=1, le=200)] = Field(
        100, description="Messages of the conversation to look at; a reply has about 2 MiB of events at most."
    )
    offset: Annotated[int, Field(ge=0)] = Field(
        0, description="Messages to pass over, counted from the end where reverse."
    )
    include_memory: bool | None = Field(
        None, description="Known from the first KSI. Changes nothing: there is nothing besides the log."
    )


class GetCorrelationChain(OfCorrelation, Request[Chain], event="monitor:get_correlation_chain", safe=True):
    """List what one request led to, in the order of the log; the same as correlation:chain."""

    limit: Annotated[int, Field(ge=1, le=10_000)] = Field(1000, description="Events at most.")
    include_memory: bool | None = Field(
        None, description="Known from the first KSI. Changes nothing: there is nothing besides the log."
    )


class LogFigures(Message):
    """The log."""

    log_id: str
    head: int
    """Position of the last event: how many there have been."""
    cursor: str
    last_minute: int
    """Events of the last minute."""
    rate_per_s: float
    """Over that minute."""
    by_kind: dict[Literal["notification", "request"], int]
    """Of the last minute; where it had more than 1,000 events, of its newest 1,000."""
    database_bytes: int


class RouterFigures(Message):
    """What is loaded."""

    plugins: int
    events: int
    """That can be asked."""
    notifications: int
    """That are declared."""


class SubscriptionFigures(Message):
    """Who follows."""

    count: int
    behind: int
    """Of them, those that read the log at present: they have just begun, or are slow."""
    slow: int
    """Of them, those that could not keep up at least once."""
    delivered: int
    """Events handed out since the start, those from the log not counted."""


class WriterFigures(Message):
    """The one that writes. Since the start, but for ``waiting``."""

    waiting: int
    """Units that wait for the disk."""
    groups: int
    """Commits that were tried."""
    units: int
    """Units of work in them."""


class Stats(Message):
    """Figures at this moment."""

    event_log: LogFigures
    router: RouterFigures
    subscriptions: SubscriptionFigures
    writer: WriterFigures


class GetStats(Request[Stats], event="monitor:get_stats", safe=True):
    """Tell figures of the log, the router, subscriptions and the writer."""
