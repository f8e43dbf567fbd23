"""The bus in the process: the same way through the middleware as over the socket, with no bytes between."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog

from ksi_common.bus import Delivered
from ksi_common.clock import Clock, parse_time
from ksi_common.envelope import EventEnvelope, StoredEvent, current_envelope
from ksi_common.errors import FailedPrecondition, InternalError, InvalidArgument
from ksi_common.ids import new_id
from ksi_common.messages import Message, Notification, Rendered, Request, Stream, is_event_pattern, spec_of
from ksi_daemon.children import Tasks
from ksi_daemon.database import Database
from ksi_daemon.database.transaction import MAX_HOPS, Transaction
from ksi_daemon.hub import Hub
from ksi_daemon.outcomes import Endpoint, Failed, Outcome, Replied, Send, Yielded
from ksi_daemon.queue_sink import following
from ksi_daemon.subscriptions import Interest, Subscriptions
from ksi_daemon.supervisor import attempt_async

log = structlog.get_logger()

R = TypeVar("R", bound=Message)

SYSTEM = "system"
"""The actor of what the daemon does on its own."""
_STREAM_BUFFER = 16


class LocalBus:
    """The Bus that plugins have. What they ask and tell has the event at work as its cause."""

    def __init__(
        self,
        dispatch: Callable[[], Endpoint],
        *,
        database: Database,
        hub: Hub,
        subscriptions: Subscriptions,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._dispatch = dispatch
        self._database = database
        self._hub = hub
        self._subscriptions = subscriptions
        self._clock = clock
        self._tasks = tasks

    async def call(self, request: Request[R], *, timeout_s: float | None = None) -> R:
        """Ask for one reply; raise the KSIError that the handler, or the way to it, gives."""
        outcomes: list[Outcome] = []

        async def send(outcome: Outcome) -> None:
            outcomes.append(outcome)

        await self._dispatch()(envelope_of(request, timeout_s), send)
        return self._reply(request, outcomes)

    async def ask(
        self, event: str, data: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> Mapping[str, Any]:
        """Ask by name, as a client does: for events whose class is not at hand."""
        outcomes: list[Outcome] = []

        async def send(outcome: Outcome) -> None:
            outcomes.append(outcome)

        cause, ident = current_envelope(), new_id()
        envelope = EventEnvelope(
            event,
            data,
            ident,
            cause.correlation_id if cause else ident,
            cause.event_id if cause else None,
            cause.actor if cause else SYSTEM,
            _hop(cause, event),
            timeout_s,
            cause.deadline if cause else None,
            traceparent=cause.traceparent if cause else None,
        )
        await self._dispatch()(envelope, send)
        reply = self._last(event, outcomes)
        return reply if isinstance(reply, Mapping) else reply.model_dump(mode="json", by_alias=True)

    async def stream(self, request: Stream[R], *, timeout_s: float | None = None) -> AsyncIterator[R]:
        """Ask for many items; closing the iterator stops the handler."""
        outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        room = asyncio.Semaphore(_STREAM_BUFFER)

        async def send(outcome: Outcome) -> None:
            if type(outcome) is Yielded:
                await room.acquire()
            outcomes.put_nowait(outcome)  # the end never waits: there may be nobody left to make room

        work = self._tasks.create_task(self._work(envelope_of(request, timeout_s), send))
        try:
            while isinstance(outcome := await outcomes.get(), Yielded):
                room.release()
                yield outcome.value  # type: ignore[misc]  # the route checks what its handler yields
            if isinstance(outcome, Failed):
                raise outcome.error
        finally:
            work.cancel()

    async def notify(self, notification: Notification) -> None:
        """Tell what happened; returns once it is stored (unless ephemeral) and handed to subscribers."""
        spec = spec_of(type(notification))
        if not spec.ephemeral:
            await self._database.write_apart(lambda tx: tx.tell(notification))
            return
        data = notification.__pydantic_serializer__.to_json(notification, by_alias=True)
        self.pass_on(spec.name, data)

    def pass_on(
        self,
        event: str,
        data: bytes,
        *,
        event_id: str | None = None,
        stream: str | None = None,
        cause: bool = True,
        tx: Transaction | None = None,
    ) -> StoredEvent:
        """Tell an ephemeral event by name; ``data``: JSON. ``cause``: as for ``Transaction.tell_raw``.

        ``tx``: once this unit of work is on disk, and not at all where it fails.
        """
        origin = current_envelope()
        if origin is None:
            ident = event_id or new_id()
            correlation, causation, actor, hop = ident, None, SYSTEM, 0
        elif cause:
            ident = event_id or new_id()
            correlation, causation = origin.correlation_id, origin.event_id
            actor, hop = origin.actor, _hop(origin, event)
        else:
            ident = event_id or origin.event_id
            correlation, causation = origin.correlation_id, origin.causation_id
            actor, hop = origin.actor, origin.hop
        told = StoredEvent(
            event, data, ident, correlation, causation, actor, hop, self._clock.time_us(), stream=stream
        )
        if tx is None:
            self._pass_on(told)
        else:
            tx.on_commit(partial(self._pass_on, told))
        return told

    def _pass_on(self, told: StoredEvent) -> None:
        self._hub.publish((told,), self._hub.head)

    def subscribe(
        self, patterns: str | Sequence[str], *, start: str | Mapping[str, Any] = "now"
    ) -> AsyncIterator[Delivered]:
        """Follow events that match, in order. "now" is now, though ephemeral events wait for a reader."""
        return self._follow(_interest(patterns, self._subscriptions.pinned(start)))

    async def _follow(self, interest: Interest) -> AsyncIterator[Delivered]:
        async with following(self._subscriptions, interest, self._tasks) as sink:
            while True:
                event, position = await sink.take()
                yield Delivered.of(event, self._subscriptions.log.cursor(position))

    async def _work(self, envelope: EventEnvelope, send: Send) -> None:
        await self._dispatch()(envelope, send)
        await send(
            Failed(InternalError(f"{envelope.event} was not answered"))
        )  # unless it was: none reads on

    def _reply(self, request: Request[R], outcomes: Sequence[Outcome]) -> R:
        # The route checks what its handler returns.
        return self._last(spec_of(type(request)).name, outcomes)  # type: ignore[return-value]

    @staticmethod
    def _last(event: str, outcomes: Sequence[Outcome]) -> Message | Mapping[str, Any]:
        outcome = outcomes[-1] if outcomes else None
        if isinstance(outcome, Failed):
            raise outcome.error
        if isinstance(outcome, Replied):
            reply = outcome.value
            return reply.message.model_validate_json(reply.data) if isinstance(reply, Rendered) else reply
        how = "not answered" if outcome is None else "answered with a stream"
        raise InternalError(f"{event} was {how}")


async def tell_or_log(bus: LocalBus, notification: Notification) -> None:
    """Tell what is so whether it can be told or not: a full disk keeps nobody from going on, or ending."""
    error = await attempt_async(partial(bus.notify, notification))
    if error is not None:
        log.error("notification.lost", told=spec_of(type(notification)).name, error=str(error))


def envelope_of(message: Message, timeout_s: float | None = None) -> EventEnvelope:
    """Make the envelope of what the code at work asks: caused by the current event, no later than it."""
    spec = spec_of(type(message))
    event = spec.name
    cause = current_envelope()
    ident = new_id()
    if cause is None:
        return EventEnvelope(
            event, {}, ident, ident, actor=SYSTEM, timeout_s=timeout_s, message=message, spec=spec
        )
    return EventEnvelope(
        event,
        {},
        ident,
        cause.correlation_id,
        cause.event_id,
        cause.actor,
        _hop(cause, event),
        timeout_s,
        cause.deadline,
        traceparent=cause.traceparent,
        message=message,
        spec=spec,
    )


def _interest(patterns: str | Sequence[str], start: str | Mapping[str, Any]) -> Interest:
    wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in wanted:
        if not is_event_pattern(pattern):
            raise InvalidArgument(f"{pattern!r} is no event pattern: a name, or the beginning of one and '*'")
    match start:
        case "now" | "beginning" | {"cursor": str()}:
            pass
        case {"time": str(text)}:
            _check_time(text)
        case _:
            raise InvalidArgument(f'start is "now", "beginning", a cursor or a time, not {start!r}')
    return Interest(wanted, start=start)


def _check_time(text: str) -> None:
    try:
        parse_time(text)
    except ValueError as error:
        raise InvalidArgument(f"{text!r} is no time: {error}") from error


def _hop(cause: EventEnvelope | None, event: str) -> int:
    hop = cause.hop + 1 if cause else 0
    if hop > MAX_HOPS:
        raise FailedPrecondition(
            f"{event} is {hop} events away from its origin", reason="too_many_hops", limit=MAX_HOPS
        )
    return hop
