"""``event:*``: tell, append, read, query and follow events."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from ksi_common.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound
from ksi_common.events.types import EventName, EventPattern, Name, StreamName, Time
from ksi_common.messages import Message, Notification, Request, Stream, renamed_from

EventId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
Limit = Annotated[int, Field(ge=1, le=10_000)]
ExpectedVersion = Literal["any", "none", "exists"] | Annotated[int, Field(ge=0)]


class Published(Message):
    """Where the event is. ``seq`` and ``cursor`` are of this node's log; None where it is ephemeral."""

    event_id: str
    seq: int | None
    cursor: str | None
    deduplicated: bool = False
    """The same event was stored before; nothing was added."""


class Publish(Request[Published], event="event:publish", recorded=False, raises=(AlreadyExists,)):
    """Tell an event to everyone who follows it; answered once it is on disk."""

    event: EventName = Field(description="Its name; not one that a plugin declares.", examples=["demo:told"])
    data: dict[str, JsonValue] = Field(default_factory=dict, description="What it says.", examples=[{"n": 1}])
    event_id: EventId | None = Field(None, description="Its id: the same one twice is stored once.")
    stream: StreamName | None = Field(None, description="The stream that it belongs to, if any.")
    ephemeral: bool = Field(default=False, description="Tell it to those who listen now and do not store it.")


class NewEvent(Message):
    """An event to append."""

    event: EventName = Field(description="Its name.", examples=["demo:told"])
    data: dict[str, JsonValue] = Field(default_factory=dict, description="What it says.")
    event_id: EventId | None = Field(None, description="Its id: the same one twice is stored once.")


class Appended(Message):
    """Where the events are. ``version``: the stream's, after the last of them."""

    stream: str
    version: int
    event_ids: list[str]
    seq: int
    """Of the last of them."""
    cursor: str
    deduplicated: bool = False


class Append(
    Request[Appended], event="event:append", recorded=False, raises=(AlreadyExists, FailedPrecondition)
):
    """Append events to a stream, all or none, if it is at the version expected."""

    stream: StreamName = Field(description="Where to.", examples=["demo/1"])
    events: Annotated[list[NewEvent], Field(min_length=1, max_length=1000)] = Field(
        description="In order.", examples=[[{"event": "demo:told", "data": {"n": 1}}]]
    )
    expected_version: ExpectedVersion = Field(
        "any", description="The stream's version before: a number, or any, none (it is empty), exists."
    )


class StreamAppend(Message):
    """Events for one stream."""

    stream: StreamName = Field(description="Where to.")
    events: Annotated[list[NewEvent], Field(min_length=1, max_length=1000)] = Field(description="In order.")
    expected_version: ExpectedVersion = Field("any", description="As for event:append.")


class AppendedTo(Message):
    """Where the events of one stream are. ``version``: the stream's, after the last of them."""

    stream: str
    version: int
    event_ids: list[str]


class AppendedMany(Message):
    """Where the events are, stream by stream as they were given."""

    appended: list[AppendedTo]
    seq: int
    """Of the last of them."""
    cursor: str
    deduplicated: bool = False
    """All of them were stored before; nothing was added."""


class AppendMany(
    Request[AppendedMany],
    event="event:append_many",
    recorded=False,
    raises=(AlreadyExists, FailedPrecondition),
):
    """Append events to several streams: all of them or none, where each is at the version expected."""

    appends: Annotated[list[StreamAppend], Field(min_length=1, max_length=100)] = Field(
        description="One entry a stream; 1000 events at most in all.",
        examples=[
            [
                {"stream": "demo/3", "events": [{"event": "demo:told"}]},
                {"stream": "demo/4", "events": [{"event": "demo:told"}], "expected_version": "none"},
            ]
        ],
    )


class Event(Message):
    """An event as the log has it."""

    event: str
    data: JsonValue
    event_id: str
    kind: Literal["notification", "request"]
    seq: int
    cursor: str
    stream: str | None
    version: int | None
    correlation_id: str
    causation_id: str | None
    actor: str
    time: str
    raw: bool = False
    """Its data are of a version of the event that this daemon does not know, and are as they were told."""
    removed: bool = False
    """Retention has removed its data; the other facts are as they were told."""


class Damaged(Message):
    """What is not what it was: positions of the log, or bytes that a row refers to."""

    reason: str
    """event_corrupt, event_missing, chain_broken, reference_missing or reference_corrupt."""
    detail: str
    seq: int | None = None
    """Its position; None: it is a reference of a plugin, or a version of a stream that is not there."""
    event_id: str | None = None
    """None where it cannot be read any more."""
    count: int = 1
    """So many positions, from ``seq`` on."""
    owner: str | None = None
    """The plugin whose row refers to the bytes."""
    name: str | None = None
    """What the plugin calls that row."""


class Events(Message):
    """A page of events."""

    events: list[Event]
    count: int
    """How many events this reply has."""
    next: str | None = None
    """Give it as ``cursor`` (query) to read on; None at the end."""
    damaged: list[Damaged] = Field(default_factory=list)
    """What was left out, as it is damaged."""


class StreamEvents(Message):
    """A page of one stream."""

    stream: str
    events: list[Event]
    count: int
    next_version: int | None = None
    """Give it as ``from_version`` to read on; None at the end."""
    compacted: int = 0
    """Retention has deleted the versions up to this one."""
    damaged: list[Damaged] = Field(default_factory=list)
    """What was left out, as it is damaged."""


class Read(Request[StreamEvents], event="event:read", safe=True):
    """Read a stream, forwards or backwards."""

    stream: StreamName = Field(description="Which one.", examples=["demo/1"])
    from_version: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Where to begin, included; default: the first, or the last when backwards."
    )
    direction: Literal["forwards", "backwards"] = Field("forwards", description="Which way to read.")
    limit: Limit = Field(1000, description="Events at most.")


class Query(Request[Events], event="event:query", safe=True):
    """Search the log: notifications, and the requests that changed something."""

    patterns: list[EventPattern] = Field(
        default_factory=list, description="Names or beginnings of names; none: all.", examples=[["state:*"]]
    )
    stream: StreamName | None = Field(None, description="Of this stream only.")
    correlation_id: str | None = Field(None, description="With this correlation id only.")
    agent_id: str | None = renamed_from(
        "client_id", "agent_id", None, description="Told or asked by this actor only."
    )
    kind: Literal["notification", "request"] | None = Field(None, description="Of this kind only.")
    since: Time | None = Field(None, description="Not before this time.")
    until: Time | None = Field(None, description="Before this time.")
    cursor: str | None = Field(None, description="After this one: the ``next`` of the page before.")
    reverse: bool = Field(default=True, description="Newest first.")
    limit: Limit = Field(100, description="Events at most.")


class Get(Request[Event], event="event:get", safe=True, raises=(NotFound, DataLoss)):
    """Read one event by its id."""

    event_id: EventId = Field(description="Its id.", examples=["0190a1b2c3d4e5f6000000001"])


class FromCursor(Message):
    """After the event that this cursor came with."""

    cursor: str


class FromTime(Message):
    """From the first event at or after this time."""

    time: Time


class Subscribed(Message):
    """One event as a subscriber gets it."""

    event: str
    data: JsonValue
    event_id: str
    stream: str | None
    version: int | None
    correlation_id: str
    causation_id: str | None
    actor: str
    time: str
    raw: bool = False
    """Its data are of a version of the event that this daemon does not know, and are as they were told."""
    attempt: int | None = None
    """For a named consumer: the how-manieth time it is given, as far as is known; 1 the first time."""


class Subscribe(Stream[Subscribed], event="event:subscribe", safe=True, raises=(FailedPrecondition,)):
    """Follow events: those stored from ``start`` on, then live.

    They come in one order, with no gap and no duplicate. Between the items come marks: ``caught_up`` once,
    ``heartbeat`` every ten seconds, and ``gap`` where events cannot be had any more. Each item and mark has
    the ``cursor`` to resume from.

    With ``consumer`` or ``group`` the daemon keeps the cursor: it goes on after what was acknowledged
    (``event:ack``), and gives again what was not, at least once. Members of a group share its events by key,
    which is the event's stream, else its correlation id: while a member has an event of a key, no member is
    given the next one of it. Another connection under the same name takes the place of the first. What is
    ephemeral is not for them.
    """

    patterns: Annotated[list[EventPattern], Field(min_length=1, max_length=256)] = Field(
        description="Names or beginnings of names.", examples=[["state:*"]]
    )
    stream: StreamName | None = Field(None, description="Of this stream only.")
    start: Literal["now", "beginning"] | FromCursor | FromTime = Field(
        "now", description="Where to begin: now, beginning, {cursor} or {time}."
    )
    overflow: Literal["log", "drop_oldest", "latest_per_key"] = Field(
        "log",
        description="When you do not keep up: log reads on from the log, so nothing durable is missed; "
        "drop_oldest and latest_per_key (by stream, else by name) skip, and say so with a gap.",
    )
    consumer: Name | None = Field(
        None, description="Name whose cursor the daemon keeps; with group: the name of this member of it."
    )
    group: Name | None = Field(None, description="Share one kept cursor with others who name this group.")
    max_inflight: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="Of a named consumer: events given and not acknowledged, at most; default 64."
    )
    ack: Literal["explicit", "auto"] = Field(
        "explicit",
        description="Of a named consumer: auto counts what was given as acknowledged, so at most once.",
    )
    max_attempts: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Of a named consumer: failures that make an event a dead letter; default 5."
    )
    ack_wait_s: Annotated[float, Field(ge=0.1, le=86_400)] | None = Field(
        None,
        description=(
            "Of a named consumer: when this member has events and has acknowledged none, nor given one back, "
            "for so long, they are taken back and given again, to others first; default: it has all the time."
        ),
    )


class Verified(Message):
    """How far the verification has come, and what it found since it said so last."""

    position: int
    until: int
    """Where it ends."""
    checked: int
    """Positions since its start."""
    removed: int
    """Events without data, as retention removed it: that is no damage."""
    damaged: list[Damaged]
    done: bool = False


class Verify(Stream[Verified], event="event:verify", safe=True):
    """Recompute digest and chain of each position, and name what is damaged; the last item is ``done``."""

    from_seq: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Where to begin, included; default: the first position that there is."
    )
    to_seq: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Where to end, included; default: the last position."
    )
    deep: bool = Field(
        default=False,
        description="Read all bytes that events and answers refer to, and compare their hashes.",
    )


class LossAcknowledged(Message):
    """The loss that was known; None: there is none to acknowledge."""

    first_missing: int | None
    missing: int | None


class AcknowledgeLoss(Request[LossAcknowledged], event="event:acknowledge_loss", idempotent=True):
    """Take note that the log has lost its tail: health is not degraded by that any more."""


class Removal(Message):
    """What one sweep of retention has removed."""

    removed: int
    """Events whose data is gone; what else is known of them stays as a stub."""
    removed_bytes: int
    compacted: int
    """Stubs deleted: the oldest, up to ``horizon``."""
    blobs: int
    """Files that no row named any more."""
    blob_bytes: int
    returned_bytes: int
    """Given back to the file system, of the database's file."""
    needed: int = 0
    """Events that no rule keeps, and that stay: tables are made of them, and no snapshot stands for them."""


class Sweep(Request[Removal], event="event:sweep", idempotent=True):
    """Apply retention now, rather than at its time; broken off, what was removed stays removed.

    Events that tables are made of (``state:changed``) stay until a snapshot of the tables stands for them. It
    is made when they are to go, and kept where it is what is live, byte for byte; `ksi replay` says what
    differs.
    """

    trust_live: bool = Field(
        default=False,
        description="Where the log does not make the tables that are live, take these as the snapshot.",
    )


class Swept(Removal, Notification, event="event:swept"):
    """Retention has removed something. A cursor before ``horizon`` gets a gap."""

    horizon: int
    """The last position that is deleted."""


class RetentionRule(Message):
    """How long the data of some events is kept, and how much of it; None: no limit."""

    pattern: EventPattern
    max_age_days: float | None
    max_bytes: int | None


class RetentionState(Message):
    """What is kept of the log, and what was removed."""

    rules: list[RetentionRule]
    """The first that matches an event holds for it."""
    stubs_max_age_days: float
    max_stubs: int
    every_s: float
    horizon: int
    """The last position that is deleted; 0: none is."""
    head: int
    """The last position."""
    swept: str | None
    """When the last sweep ended; None: not since the start of the daemon."""
    last: Removal


class GetRetention(Request[RetentionState], event="event:retention", safe=True):
    """Tell what is kept of the log, and what the last sweep has removed."""
