"""One client: bytes to frames, frames to work, outcomes to bytes. One write per turn of the loop."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from select import POLLHUP, poll
from typing import Any, Literal, Protocol, cast

from ksi_common.clock import Clock, format_time
from ksi_common.errors import AlreadyExists, InternalError, KSIError, Unavailable
from ksi_common.frames import Call, Cancel, FrameId, ServedAnswer, error_line
from ksi_common.ids import new_id
from ksi_common.jsonrpc import Rpc
from ksi_common.messages import Rendered
from ksi_common.protocol import FromClient, Malformed, ServerConnection, names_no_event
from ksi_common.strict_json import dumps
from ksi_daemon.channel import Channel
from ksi_daemon.connection_limits import HIGH_WATER, LOW_WATER, ConnectionLimits
from ksi_daemon.connection_timeouts import ConnectionTimeouts
from ksi_daemon.exchange import Exchange, encode
from ksi_daemon.middleware.direct import Direct
from ksi_daemon.outcomes import Endpoint, Reply
from ksi_daemon.router import Route
from ksi_daemon.rpc import RpcSide
from ksi_daemon.shared_bytes import SharedBytes


class Served(Protocol):
    """What a connection needs of the server it belongs to."""

    clock: Clock
    dispatch: Endpoint
    direct: Direct | None
    """The way of handlers that do not wait; None: they go by ``dispatch``, as all others."""
    routes: Mapping[str, Route]
    limits: ConnectionLimits
    closing: bool

    def crashed(self, error: BaseException) -> None:
        """Hear of an error that must end the daemon."""
        ...

    def closed(self, connection: "Connection") -> None:
        """Hear that the client is gone."""
        ...

    def flush_later(self, connection: "Connection") -> None:
        """Flush at the end of this turn of the loop, with all others."""
        ...

    def progressed(self) -> None:
        """Hear, while it closes, that a request has ended."""
        ...


class Connection(asyncio.Protocol):
    """A client of the Unix socket. All of it runs on the loop."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._frames = ServerConnection()
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes | memoryview] = []
        self._receiving = False
        self._exchanges: dict[FrameId, Exchange] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unbegun = 0
        """Tasks before their first step; until they are under way, what comes next may not go by direct."""
        self._streams = 0
        self._unsent = 0
        self._backlog: Iterator[FromClient] | None = None
        """What was received and waits until the client has read what it asked for before."""
        self._writable = asyncio.Event()
        self._writable.set()
        self._timeouts = ConnectionTimeouts(server.limits, refuse=self.refuse, abort=self.abort)
        self._ending = False
        self._last_words: Literal["said", "unreadable"] | None = None
        self._timestamp = b""
        self._last_reply: object = None
        self._last_text = b""
        self._rpc: RpcSide | None = None
        self.serves: Callable[[ServedAnswer], None] | None = None
        """Hears what this client answers, where it serves events."""
        self.transport: asyncio.Transport | None = None
        self.plain_socket: int | None = None
        """The transport's socket, where what is sent is what is written, and that may be done past it."""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. What may be unread is bounded."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases
        self.transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)

    def data_received(self, data: bytes) -> None:
        """Take what the client sent; the work that it asks for begins in the order sent."""
        if self._ending:
            return
        frames: Iterator[FromClient] = self._frames.receive(data)
        if self._backlog is not None:
            self._backlog = chain(self._backlog, frames)
            return
        ended = self._take(frames)
        partial = self._frames.partial and self._writable.is_set()  # else nothing more is read of it
        if ended or partial is not self._timeouts.awaits_line:
            self._timeouts.await_line(begun=partial)

    def _take(self, frames: Iterator[FromClient]) -> bool:
        """Begin what frames ask for, while the client reads the answers; tell whether there were any."""
        ended = False
        self._backlog = None
        self._receiving = True  # what is answered meanwhile is one write, at the end of this
        try:
            for frame in frames:
                ended = True
                if type(frame) is Call:
                    self._call(frame)
                else:
                    self._receive(frame)
                if self._unsent > HIGH_WATER:
                    self.flush()
                    if not self._writable.is_set():
                        self._backlog = frames
                        break
        finally:
            self._receiving = False
        if self._out:
            self.flush()
        return ended

    def eof_received(self) -> bool:
        """Go on answering a client that has only said all it had to say, as ``nc -N`` does."""
        if self.transport is None or self._is_done or _is_gone(self.transport):
            return False
        self._last_words = "said"
        return True

    def pause_writing(self) -> None:
        """Stop taking requests of a client that does not take answers."""
        self._writable.clear()
        if self.transport is not None:
            self.transport.pause_reading()
            self._timeouts.await_line(begun=False)
            self._timeouts.await_reader(self.transport)

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()
        self._timeouts.has_read()
        if self._backlog is not None and not self._ending:
            self._take(self._backlog)
            self._end_if_done()
        if self._writable.is_set() and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
            self._timeouts.await_line(begun=self._frames.partial and not self._ending)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what only this client could read; requests go on to their end."""
        del exc
        self.transport = None
        self._writable.set()
        self._timeouts.end()
        for exchange in tuple(self._exchanges.values()):  # one that has not begun leaves at once
            if exchange.stream:
                exchange.cancel()
        self._server.closed(self)

    # What the rest of the daemon calls.

    @property
    def connection(self) -> object:
        """Give what stands for this connection."""
        return self

    @property
    def idle(self) -> bool:
        """Tell whether no request is at work; streams do not count, they never end."""
        return len(self._exchanges) == self._streams

    @property
    def busy(self) -> bool:
        """Tell whether anything is at work that has an end: what follows events has none."""
        return any(not (call.stream and call.safe) for call in self._exchanges.values())

    @property
    def full(self) -> bool:
        """Tell whether the client has as much unread as it may, this turn's items counted."""
        return not self._writable.is_set() or self._unsent > HIGH_WATER

    async def wait_writable(self) -> None:
        """Return when the client has read enough, or is gone."""
        while self.full:
            if self._writable.is_set():
                await asyncio.sleep(0)  # what this turn has pushed is flushed before this goes on
            else:
                await self._writable.wait()

    @property
    def timestamp(self) -> bytes:
        """Give the time, RFC 3339; replies of one turn of the loop share it."""
        if not self._timestamp:
            self._timestamp = format_time(self._server.clock.time_us()).encode()
        return self._timestamp

    def encode(self, value: Reply | Mapping[str, Any]) -> bytes:
        """Render a reply. Messages are frozen: the same one again (as of health) has the same text."""
        if type(value) is Rendered:
            return value.data
        if value is not self._last_reply:
            self._last_text = encode(value)
            self._last_reply = value
        return self._last_text

    def write(self, line: bytes | memoryview) -> None:
        """Send a frame, with whatever else this turn of the loop brings."""
        if not self._out and not self._receiving:
            self._server.flush_later(self)
        self._out.append(line)
        self._unsent += len(line)

    def push(self, lines: bytes, shared: SharedBytes | None) -> None:
        """Send items of a subscription."""
        if shared is not None and self.plain_socket is not None and not self._out:
            transport = self.transport
            if transport is None or transport.is_closing():
                return  # its socket may be another client's by now
            if not transport.get_write_buffer_size():  # all that was written before is on its way
                sent = shared.send(lines, self.plain_socket)
                if sent == len(lines):
                    return
                if sent:
                    self.write(memoryview(lines)[sent:])  # a copy would be one for each that reads slowly
                    return
        self.write(lines)

    def refuse(self, error: KSIError) -> None:
        """Say why there is no service, and close."""
        self.write(error_line(b"null", error))
        self.end()

    def end(self) -> None:
        """Close after what is written; streams are told that the daemon is going."""
        self._ending = True
        for exchange in tuple(self._exchanges.values()):
            if exchange.stream:
                exchange.fail(Unavailable("the daemon is stopping", reason="shutting_down"))
                exchange.cancel()
        self.flush()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close without a word, and stop the work."""
        for task in self._tasks:
            task.cancel()
        if self.transport is not None:
            self.transport.abort()

    # The way of a call.

    def _receive(self, frame: FromClient) -> None:
        if type(frame) is ServedAnswer:
            if self.serves is None:
                self._malformed(names_no_event(frame.id))
            else:
                self.serves(frame)
        elif type(frame) is Malformed:
            self._malformed(frame)
        elif type(frame) is Cancel:
            self._cancel(frame.id)
        elif type(frame) is Rpc:
            if self._rpc is None:
                self._rpc = RpcSide(self, self._call, self._cancel, self._server.routes)
            self._rpc.receive(frame)

    def _call(self, call: Call, channel: Channel | None = None) -> None:
        ident = new_id() if call.id is None else call.id
        route = self._server.routes.get(call.event)
        stream = route is not None and route.spec.kind == "stream"
        refusal = self._refusal(ident, stream=stream)
        if refusal is not None:
            (channel or self).write(error_line(dumps(ident), refusal))
            return
        exchange = Exchange(channel or self, call, ident, route, stream=stream)
        self._exchanges[ident] = exchange
        self._streams += stream
        # Not before what was sent before it; and what has a key may be done already.
        begin = None if route is None or self._unbegun or call.idempotency_key else route.begin
        if begin is not None and self._server.direct is not None:
            exchange.envelope.begun = self._server.direct(exchange, begin)
            if exchange.envelope.begun is None:
                return
        task = self._loop.create_task(self._run(exchange))
        exchange.task = task
        self._unbegun += 1
        # No TaskGroup here: it would cost as much as the request. This set is awaited by the server instead.
        self._tasks.add(task)

    async def _run(self, exchange: Exchange) -> None:
        exchange.begun = True
        self._unbegun -= 1
        try:
            if not exchange.answered:
                await self._server.dispatch(exchange.envelope, exchange.send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 -- strict mode only: it ends the daemon, not the loop
            self.crashed(error)
        finally:
            if not exchange.answered:
                exchange.fail(InternalError(f"{exchange.envelope.event} was not answered"))
            self._tasks.discard(exchange.task)
            exchange.release()

    def crashed(self, error: BaseException) -> None:
        """End the daemon: an error that nobody may catch."""
        self._server.crashed(error)

    def answer(self, exchange: Exchange, line: bytes) -> None:
        """Send the one terminal frame of an exchange, and free its id.

        The last request at work does not wait for the end of the turn: nothing would join it.
        """
        self._exchanges.pop(exchange.ident, None)
        self._streams -= exchange.stream
        if self._receiving or not self.idle:
            self.write(line)
        else:
            self._out.append(line)
            self.flush()
        if self._last_words is not None:
            self._end_if_done()
        if self._server.closing:
            self._server.progressed()

    def _refusal(self, ident: FrameId, *, stream: bool) -> KSIError | None:
        if ident in self._exchanges:
            return AlreadyExists(f"id {ident!r} is in use on this connection", reason="id_in_use")
        if self._server.closing:
            return Unavailable("the daemon is stopping", reason="shutting_down", retry_after_s=1)
        limits = self._server.limits
        if stream:
            full = self._streams >= limits.streams
        else:
            full = len(self._exchanges) - self._streams >= limits.in_flight
        return limits.refusal(stream=stream) if full else None

    def _cancel(self, ident: FrameId) -> None:
        exchange = self._exchanges.get(ident)
        if exchange is not None:
            exchange.cancel()

    def _malformed(self, frame: Malformed) -> None:
        self.write(error_line(dumps(frame.id), frame.error))
        if frame.fatal:
            self._ending = True  # what follows cannot be read; what went before is answered
            self._last_words = "unreadable"
            self._end_if_done()

    @property
    def _is_done(self) -> bool:
        return not self._exchanges and self._backlog is None

    def _end_if_done(self) -> None:
        if self._last_words is not None and (
            self.idle if self._last_words == "unreadable" else self._is_done
        ):
            self.end()

    def flush(self) -> None:
        """Write the frames of this turn."""
        out, self._out = self._out, []
        self._timestamp = b""
        self._unsent = 0
        if out and self.transport is not None:
            self.transport.write(b"".join(out) if len(out) > 1 else out[0])


def _is_gone(transport: asyncio.Transport) -> bool:
    """Tell a client that has closed from one that has only ended what it sends."""
    hung_up = poll()
    hung_up.register(transport.get_extra_info("socket").fileno(), POLLHUP)
    return bool(hung_up.poll(0))
