"""What travels with an event: who asked, why, and until when."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ksi_common.clock import format_time
from ksi_common.messages import EventSpec, Message
from ksi_common.records import record

T = TypeVar("T")

OWNER = "owner"
"""The actor of every connection of the user whom the daemon belongs to."""


@record
class EventMetadata:
    """Facts of an event that are not its data."""

    event_id: str
    correlation_id: str
    """Shared by everything that one request led to."""
    causation_id: str | None
    """The event id of what directly led to this one."""
    actor: str
    hop: int
    """How many events led to this one; 32 is the limit."""
    traceparent: str | None
    """W3C trace context, as the caller gave it."""


class Caller(Protocol):
    """Who awaits the answer, where that is not a coroutine of this process."""

    @property
    def connection(self) -> object:
        """Give what stands for the connection that asks: the same object for all that it asks."""
        ...

    def abandon(self) -> None:
        """Answer that the deadline has passed, and stop the work."""
        ...


class Joining(Protocol):
    """What commits with a unit of work: a request's idempotency key, a durable subscriber's cursor."""

    def around(self, unit: Callable[[Any], T]) -> Callable[[Any], T]:
        """Give the unit that does both."""
        ...

    def answering(self, reply: object) -> Callable[[Any], object]:
        """Give the unit of a request that wrote nothing; ``reply``: its answer, None: it is not known yet."""
        ...


@dataclass(slots=True, eq=False)
class EventEnvelope:
    """An event on its way to a handler. A handler may take one as a parameter."""

    event: str
    data: Mapping[str, Any]
    """The JSON object as it came; empty where ``message`` was given in process."""
    event_id: str
    correlation_id: str
    causation_id: str | None = None
    actor: str = OWNER
    hop: int = 0
    timeout_s: float | None = None
    """Seconds that the caller gives; None: the default of the daemon."""
    deadline: float | None = None
    """Monotonic seconds; what an event leads to has no later one."""
    idempotency_key: str | None = None
    traceparent: str | None = None
    message: Message | None = None
    """The event as its class, once it is validated."""
    spec: EventSpec | None = None
    """What is declared of the event; None: nothing is."""
    caller: "Caller | None" = None
    """What awaits the answer elsewhere; None: a caller in this process."""
    to_record: bool = False
    """It is a request that leaves a row in the log."""
    recorded: bool = False
    """Its row is part of a unit of work already."""
    joins: "Joining | None" = None
    """What commits with its unit of work; most requests have nothing."""
    begun: Awaitable[Any] | None = None
    """What its handler has begun at once and still waits for."""
    warnings: Sequence[str] | None = None
    """What its caller is to be told beside the answer."""

    @property
    def metadata(self) -> EventMetadata:
        """Give the facts apart from the data."""
        return EventMetadata(
            self.event_id, self.correlation_id, self.causation_id, self.actor, self.hop, self.traceparent
        )


_current: ContextVar[EventEnvelope | None] = ContextVar("ksi_envelope", default=None)

set_current = _current.set
reset_current = _current.reset


def current_envelope() -> EventEnvelope | None:
    """Give the event that the running code works for, if any; also in threads that handlers start."""
    return _current.get()


@contextmanager
def event_context(envelope: EventEnvelope) -> Iterator[EventEnvelope]:
    """Work for ``envelope``: log lines carry its ids, and what is told or asked has it as its cause."""
    token = _current.set(envelope)
    try:
        yield envelope
    finally:
        _current.reset(token)


@dataclass(slots=True, eq=False)
class StoredEvent:
    """An event of the log, or an ephemeral one as it passes. Not to be changed by those who read it."""

    event: str
    data: bytes
    """JSON."""
    event_id: str
    correlation_id: str
    causation_id: str | None
    actor: str
    hop: int
    time_us: int
    seq: int | None = None
    """Position in the log of this node, gapless from 1; None: ephemeral."""
    stream: str | None = None
    version: int | None = None
    """Position in the stream: 1, 2, 3, …"""
    kind: str = "notification"
    line: bytes | None = None
    """The item frame without its id, rendered once for all subscribers."""
    raw: bool = False
    """Its data are of a version that the code of now does not know, and are given as they were stored."""
    after: int = 0
    """Of an ephemeral one: the last seq that was published before it."""

    @property
    def position(self) -> int:
        """Where to resume after it: everything up to here comes before it, in every subscription."""
        return self.after if self.seq is None else self.seq

    @property
    def time(self) -> str:
        """The time, RFC 3339."""
        return format_time(self.time_us)
