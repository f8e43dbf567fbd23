"""One call of a client, from its frame to its answer."""

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final

from ksi_common.envelope import OWNER, Caller, EventEnvelope
from ksi_common.errors import Cancelled, DeadlineExceeded, InternalError, KSIError, ResourceExhausted
from ksi_common.frames import (
    Call,
    FrameId,
    MarkKind,
    end_line,
    error_line,
    item_line,
    mark_line,
    reply_line,
    with_warnings,
)
from ksi_common.ids import new_id
from ksi_common.messages import Message, Rendered
from ksi_common.protocol import MAX_ANSWER
from ksi_common.strict_json import dumps
from ksi_daemon.hub import Batch
from ksi_daemon.outcomes import Ended, Failed, Outcome, Replied, Reply, Yielded
from ksi_daemon.router import Route

if TYPE_CHECKING:
    import asyncio

    from ksi_daemon.channel import Channel
MAX_ANSWER_DATA: Final = MAX_ANSWER - 4096
"""Bytes of a reply or an item; the rest of its line is for the frame."""


class Exchange:
    """One call of a client, from its frame to its answer. Exactly one terminal frame is sent."""

    __slots__ = (
        "_connection",
        "_route",
        "answered",
        "begun",
        "envelope",
        "ident",
        "safe",
        "slot",
        "started",
        "stop",
        "stream",
        "task",
        "wire_id",
    )

    def __init__(
        self, connection: "Channel", call: Call, ident: FrameId, route: Route | None, *, stream: bool
    ) -> None:
        event_id = new_id()
        self._connection = connection
        self.ident = ident
        self.wire_id = dumps(ident)
        self.stream = stream
        self.safe = route is not None and route.spec.safe
        self.answered = False
        self.begun = False
        self.started = 0.0
        """When its handler was begun, by ``perf_counter``, where it has no task."""
        self.slot: dict[Caller, None] | None = None
        """Where its deadline is watched, while it waits without a task."""
        self.stop: Callable[[], None] | None = None
        """Stops what the answer is awaited from, where it comes by a callback."""
        self.task: asyncio.Task[None] | None = None
        self.envelope = EventEnvelope(
            call.event,
            call.data,
            event_id,
            call.correlation_id or event_id,
            call.causation_id,
            OWNER,
            0,
            call.timeout_s,
            None,
            call.idempotency_key,
            call.traceparent,
            None,
            route.spec if route is not None else None,
            self,
        )

    @property
    def connection(self) -> object:
        """Give what stands for the connection that asks."""
        return self._connection.connection

    async def send(self, outcome: Outcome) -> None:
        """Take what the handler gives; wait while the client does not read."""
        if self.answered:
            return
        kind = type(outcome)
        if kind is Replied:
            self.reply(outcome.value)  # type: ignore[union-attr]
        elif kind is Yielded:
            await self._item(outcome.value)  # type: ignore[union-attr, arg-type]
        elif kind is Failed:
            self.fail(outcome.error)  # type: ignore[union-attr]
        elif kind is Ended:
            self._finish(end_line(self.wire_id))

    def reply(self, value: Reply | Mapping[str, Any]) -> None:
        """Answer. Raises where that cannot be rendered, or is too large; then nothing is sent."""
        data = self._connection.encode(value)
        if len(data) > MAX_ANSWER_DATA:
            raise _too_large("reply", data)
        envelope = self.envelope
        line = reply_line(
            self.wire_id,
            dumps(envelope.event),
            data,
            dumps(envelope.correlation_id),
            self._connection.timestamp,
        )
        self._finish(line if envelope.warnings is None else with_warnings(line, envelope.warnings))

    def fail(self, error: KSIError) -> None:
        """Answer with an error, unless there is an answer."""
        if not self.answered:
            self._finish(error_line(self.wire_id, error, self.envelope.correlation_id))

    def crash(self, error: BaseException) -> None:
        """End the daemon because of ``error``; the client is told that there is no answer."""
        self._connection.crashed(error)
        self.fail(InternalError(f"{self.envelope.event} was not answered"))

    def abandon(self) -> None:
        """Answer that the deadline has passed, and stop the work."""
        self.fail(DeadlineExceeded(f"{self.envelope.event} took too long", reason="deadline"))
        self.cancel()

    def cancel(self) -> None:
        """Stop the work; its end is answered by the middleware. What the writer has is not taken back."""
        if self.begun and self.task is not None:
            self.task.cancel()
        else:
            if self.stop is not None:
                self.stop()
            # A task that is cancelled before its first step never runs, and would never answer.
            self.fail(Cancelled(f"{self.envelope.event} was cancelled"))

    def release(self) -> None:
        """Cut the circle of references, so that the request is freed at once and not by the collector."""
        self.task = None
        self.stop = None
        self.envelope.caller = None
        begun = self.envelope.begun
        if begun is not None and isinstance(begun, Coroutine):
            begun.close()  # where it was cancelled before the first step of its task

    def sink(self) -> "ConnectionSink":
        """Give the way for frames that are rendered already."""
        return ConnectionSink(self._connection, self)

    async def _item(self, value: Message) -> None:
        if self._connection.full:
            await self._connection.wait_writable()
        data = encode(value)
        if len(data) > MAX_ANSWER_DATA:
            raise _too_large("item", data)
        self._connection.write(item_line(self.wire_id, data))

    def _finish(self, line: bytes) -> None:
        self.answered = True
        self._connection.answer(self, line)


class ConnectionSink:
    """Where a subscription of a client goes: item frames rendered once for all who get them."""

    __slots__ = ("_connection", "_exchange")

    def __init__(self, connection: "Channel", exchange: Exchange) -> None:
        self._connection = connection
        self._exchange = exchange

    @property
    def full(self) -> bool:
        """Tell whether the client has as much unread as it may."""
        return self._connection.full

    def deliver(self, batch: Batch) -> None:
        """Send items; never waits."""
        if not self._exchange.answered:
            self._connection.push(batch.lines(self._exchange.wire_id), batch.shared)

    def mark(self, kind: MarkKind, cursor: str, fields: Mapping[str, Any]) -> None:
        """Send a mark."""
        if not self._exchange.answered:
            self._connection.write(mark_line(self._exchange.wire_id, kind, cursor, fields))

    async def wait_drained(self) -> None:
        """Return when the client has read enough, or is gone."""
        await self._connection.wait_writable()


def _too_large(what: str, data: bytes) -> ResourceExhausted:
    return ResourceExhausted(
        f"the {what} has {len(data)} bytes", reason="too_large", limit=MAX_ANSWER_DATA, retryable=False
    )


def encode(value: Reply | Mapping[str, Any]) -> bytes:
    """Render a reply or an item as JSON."""
    if type(value) is Rendered:
        return value.data
    serializer = getattr(value, "__pydantic_serializer__", None)  # isinstance asks pydantic, in Python
    if serializer is not None:
        return serializer.to_json(value, by_alias=True)  # type: ignore[no-any-return]
    try:
        return dumps(value)
    except TypeError as error:
        raise InternalError(f"the reply is no JSON: {error}") from error
