"""A daemon of the tests' own making, which follows the protocol, and what it has in common with the real one.

It keeps its log through ``stop`` and ``start``, and it can be told to misbehave: to be silent, to cut
connections in the middle of a frame. ``Conformance`` is run against it here and, in the integration tests,
against the real daemon.
"""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ksi_common.errors import Cancelled, KSIError, NotFound
from ksi_common.frames import Call, Cancel, FrameId, end_line, error_line, mark_line
from ksi_common.messages import matches
from ksi_common.protocol import MAX_ANSWER, Malformed, ServerConnection
from ksi_common.strict_json import dumps, loads

Handler = Callable[[Mapping[str, Any]], Any]


FACTS = {
    "correlation_id": "c",
    "causation_id": None,
    "actor": "owner",
    "time": "2026-01-01T00:00:00Z",
    "stream": None,
    "version": None,
}


class FakeDaemon:
    """Answers requests, keeps published events and feeds subscribers, in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log: list[dict[str, Any]] = []
        self.received: list[Call] = []
        self.cancelled: list[FrameId] = []
        self.handlers: dict[str, Handler] = {
            "system:health": lambda data: {"status": "healthy"},
            "state:get": self._get,
            "state:set": self._set,
            "event:publish": self._publish,
        }
        self.values: dict[str, Any] = {}
        self.silent: set[str] = set()
        """Events that are taken and never answered."""
        self.cut_within_item: int | None = None
        """After so many more items: half of the next one, then the end of the connection."""
        self.gap: Mapping[str, Any] | None = None
        """What a gap says that every subscription begins with."""
        self.connections: set[_Connection] = set()
        self.came = asyncio.Event()
        """Set at each request, cancel and connection."""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), self.path)

    async def stop(self) -> None:
        """Stop listening and cut every connection; the log stays."""
        assert self._server is not None
        # asyncio trips over a server that is closed between a connection and its acceptance.
        last = await open_wire(self.path)
        await last.ask("system:health", {})
        self.received.pop()
        self._server.close()
        await last.aclose()
        self.cut()
        self.path.unlink(missing_ok=True)
        await self.wait_until(lambda: not self.connections)

    async def __aenter__(self) -> "FakeDaemon":
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    def cut(self) -> None:
        """End every connection without a word."""
        for connection in list(self.connections):
            connection.transport.abort()

    def say(self, line: bytes, *, last: bool = False) -> None:
        """Write ``line`` to every connection, and then end it, if it is the ``last``."""
        for connection in self.connections:
            connection.transport.write(line)
            if last:
                connection.transport.close()

    def end_streams(self) -> None:
        """End every subscription."""
        for connection in self.connections:
            connection.end_streams()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once ``condition`` holds; looked at whenever something comes."""
        async with asyncio.timeout(30):
            while not condition():
                self.came.clear()
                await self.came.wait()

    def events_received(self) -> list[str]:
        """Name what was asked, in order."""
        return [call.event for call in self.received]

    def publish(self, event: str, data: Mapping[str, Any]) -> int:
        """Append to the log and feed subscribers; give the event's seq."""
        seq = len(self.log) + 1
        self.log.append({"event": event, "data": dict(data), "event_id": f"e{seq}"})
        for connection in list(self.connections):
            connection.feed()
        return seq

    def _publish(self, data: Mapping[str, Any]) -> dict[str, Any]:
        known = [n for n, told in enumerate(self.log, 1) if told["event_id"] == data.get("event_id")]
        seq = known[0] if known else self.publish(data["event"], data.get("data", {}))
        if "event_id" in data:
            self.log[seq - 1]["event_id"] = data["event_id"]
        event_id = self.log[seq - 1]["event_id"]
        return {"event_id": event_id, "seq": seq, "cursor": f"fake-{seq}", "deduplicated": bool(known)}

    def _get(self, data: Mapping[str, Any]) -> dict[str, Any]:
        found = data["key"] in self.values
        return {
            "value": self.values.get(data["key"]),
            "found": found,
            "namespace": "global",
            "key": data["key"],
        }

    def _set(self, data: Mapping[str, Any]) -> dict[str, Any]:
        self.values[data["key"]] = data["value"]
        return {"status": "set", "namespace": "global", "key": data["key"]}


class _Connection(asyncio.Protocol):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon
        self._wire = ServerConnection()
        self._open: set[FrameId] = set()
        self._subscriptions: dict[FrameId, _Position] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._daemon.connections.add(self)
        self._daemon.came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._daemon.connections.discard(self)
        self._daemon.came.set()

    def data_received(self, data: bytes) -> None:
        for frame in self._wire.receive(data):
            if isinstance(frame, Call):
                self._daemon.received.append(frame)
                self._answer(frame)
            elif isinstance(frame, Cancel):
                self._daemon.cancelled.append(frame.id)
                self._cancel(frame.id)
            else:
                assert isinstance(frame, Malformed)
                self.transport.write(error_line(dumps(frame.id), frame.error))
        self._daemon.came.set()

    def feed(self) -> None:
        for ident, position in self._subscriptions.items():
            while position.seq < len(self._daemon.log):
                told = self._daemon.log[position.seq]
                position.seq += 1
                if any(matches(pattern, told["event"]) for pattern in position.patterns):
                    self._item(ident, told, position.seq)

    def _answer(self, call: Call) -> None:
        assert call.id is not None
        self._open.add(call.id)
        if call.event in self._daemon.silent:
            return
        if call.event == "event:subscribe":
            self._subscribe(call.id, call.data)
            return
        try:
            reply = self._handle(call)
        except KSIError as error:
            self._end(call.id, error_line(dumps(call.id), error, "c1"))
        else:
            frame = {"id": call.id, "type": "reply", "event": call.event, "data": reply}
            self._end(call.id, dumps(frame) + b"\n")

    def _handle(self, call: Call) -> Any:
        if call.event not in self._daemon.handlers:
            raise NotFound(f'no plugin handles "{call.event}"', reason="unknown_event")
        return self._daemon.handlers[call.event](call.data)

    def _subscribe(self, ident: FrameId, data: Mapping[str, Any]) -> None:
        match data.get("start", "now"):
            case "now":
                seq = len(self._daemon.log)
            case "beginning":
                seq = 0
            case {"cursor": str(cursor)}:
                seq = int(cursor.partition("-")[2])
            case _:
                seq = 0
        self._subscriptions[ident] = _Position(data["patterns"], seq)
        if self._daemon.gap is not None:
            self.mark(ident, "gap", **self._daemon.gap)
        self.feed()
        self.mark(ident, "caught_up")

    def mark(self, ident: FrameId, kind: Any, **fields: Any) -> None:
        cursor = f"fake-{self._subscriptions[ident].seq}"
        self.transport.write(mark_line(dumps(ident), kind, cursor, fields))

    def heartbeat(self) -> None:
        for ident in self._subscriptions:
            self.mark(ident, "heartbeat")

    def _cancel(self, ident: FrameId) -> None:
        if ident in self._open:
            self._end(ident, error_line(dumps(ident), Cancelled("cancelled by the caller")))

    def _end(self, ident: FrameId, line: bytes) -> None:
        self._open.discard(ident)
        self._subscriptions.pop(ident, None)
        self.transport.write(line)

    def end_streams(self) -> None:
        """End every subscription."""
        for ident in list(self._subscriptions):
            self._end(ident, end_line(dumps(ident)))

    def _item(self, ident: FrameId, told: Mapping[str, Any], seq: int) -> None:
        fields = {
            "correlation_id": "c",
            "causation_id": None,
            "actor": "owner",
            "time": "2026-01-01T00:00:00Z",
        }
        data = {**told, **fields, "stream": None, "version": None}
        line = dumps({"id": ident, "type": "item", "cursor": f"fake-{seq}", "data": data}) + b"\n"
        if self._daemon.cut_within_item == 0:
            self._daemon.cut_within_item = None
            self.transport.write(line[: len(line) // 2])
            # What is written must leave before the end: close flushes, abort does not.
            self.transport.close()
            return
        if self._daemon.cut_within_item is not None:
            self._daemon.cut_within_item -= 1
        self.transport.write(line)


class _Position:
    def __init__(self, patterns: list[str], seq: int) -> None:
        self.patterns = patterns
        self.seq = seq


@contextmanager
def socket_folder() -> Iterator[Path]:
    """Give a folder whose path is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="ksi"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def fake_in_thread() -> Iterator[tuple[FakeDaemon, Callable[[Callable[[], Any]], Any]]]:
    """Run a fake in a loop of its own, for blocking clients; give it and a way to run code in its loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(code: Callable[[], Any]) -> Any:
        async def inside() -> Any:
            result = code()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(inside(), loop).result(40)

    with socket_folder() as folder:
        daemon: FakeDaemon = run(lambda: FakeDaemon(folder / "d.sock"))
        run(daemon.start)
        try:
            yield daemon, run
        finally:
            run(daemon.stop)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


class Wire:
    """A raw connection, as ``nc -U`` would have it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, frame: Mapping[str, Any]) -> None:
        """Write a line."""
        self._writer.write(dumps(frame) + b"\n")

    async def receive(self) -> dict[str, Any]:
        """Read a line."""
        async with asyncio.timeout(30):
            frame: dict[str, Any] = loads(await self._reader.readline())
            return frame

    async def ask(self, event: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and read one line."""
        self.send({"event": event, "data": data, "id": 1})
        return await self.receive()

    async def aclose(self) -> None:
        """Hang up."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


async def open_wire(path: Path) -> Wire:
    """Connect."""
    return Wire(*await asyncio.open_unix_connection(path, limit=MAX_ANSWER))


class Conformance:
    """What the client relies on, true of any daemon."""

    @pytest.fixture
    async def wire(self) -> AsyncIterator[Wire]:
        with socket_folder() as folder:
            async with FakeDaemon(folder / "d.sock") as daemon:
                wire = await open_wire(daemon.path)
                yield wire
                await wire.aclose()

    async def test_a_reply_has_the_id_of_its_request(self, wire: Wire) -> None:
        reply = await wire.ask("system:health", {})
        assert (reply["id"], reply["type"], reply["data"]["status"]) == (1, "reply", "healthy")

    async def test_an_unknown_event_is_not_found(self, wire: Wire) -> None:
        reply = await wire.ask("system:healthy_not", {})
        assert (reply["id"], reply["type"], reply["error"]["code"]) == (1, "error", "NOT_FOUND")
        assert reply["correlation_id"]

    async def test_a_cancelled_stream_ends_with_an_error(self, wire: Wire) -> None:
        mark = await wire.ask("event:subscribe", {"patterns": ["demo:*"], "start": "now"})
        assert (mark["type"], mark["id"]) == ("caught_up", 1)
        wire.send({"type": "cancel", "id": 1})
        end = await wire.receive()
        assert (end["id"], end["type"], end["error"]["code"]) == (1, "error", "CANCELLED")

    async def test_the_same_event_id_is_stored_once(self, wire: Wire) -> None:
        told = {"event": "demo:told", "data": {}, "event_id": "x1"}
        first = await wire.ask("event:publish", told)
        second = await wire.ask("event:publish", told)
        assert not first["data"]["deduplicated"]
        assert second["data"]["deduplicated"]
        assert first["data"]["seq"] == second["data"]["seq"]

    async def test_a_subscription_gives_what_was_stored_then_caught_up_then_what_comes(
        self, wire: Wire
    ) -> None:
        await wire.ask("event:publish", {"event": "demo:told", "data": {"n": 1}})
        wire.send(
            {"event": "event:subscribe", "data": {"patterns": ["demo:*"], "start": "beginning"}, "id": 2}
        )
        item, mark = await wire.receive(), await wire.receive()
        assert (item["id"], item["type"], item["data"]["data"]) == (2, "item", {"n": 1})
        assert (mark["id"], mark["type"]) == (2, "caught_up")
        wire.send({"event": "event:publish", "data": {"event": "demo:told", "data": {"n": 2}}, "id": 3})
        frames = [await wire.receive(), await wire.receive()]
        assert {frame["type"] for frame in frames} == {"item", "reply"}

    async def test_a_cursor_resumes_after_the_item_that_it_came_with(self, wire: Wire) -> None:
        for n in range(3):
            await wire.ask("event:publish", {"event": "demo:told", "data": {"n": n}})
        first = await wire.ask("event:subscribe", {"patterns": ["demo:*"], "start": "beginning"})
        while (await wire.receive())["type"] != "caught_up":
            pass
        start = {"cursor": first["cursor"]}
        wire.send({"event": "event:subscribe", "data": {"patterns": ["demo:*"], "start": start}, "id": 2})
        assert (await wire.receive())["data"]["data"] == {"n": 1}


class TestTheFake(Conformance):
    """The fake does what the client relies on."""
