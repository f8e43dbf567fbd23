"""What plugin authors test with: a real daemon in the process, a clock of one's own, a raw connection.

async def test_hello(ksi):                       # the fixture; or running_daemon(plugins=[...])
    async with ksi.connect() as wire:
        reply = await wire.call("system:health")
        assert reply["data"]["status"] == "healthy"
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ksi_common.bus import Bus
from ksi_common.clock import Clock
from ksi_common.envelope import StoredEvent
from ksi_common.messages import matches
from ksi_common.paths import Paths
from ksi_daemon.daemon import Daemon
from ksi_daemon.hub import Batch
from ksi_daemon.lock import home_lock
from ksi_daemon.settings import Settings

PATIENCE_S = 5.0
"""How long a test waits for what must come: a net, never a measure."""


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self, time_us: int = 1_700_000_000_000_000) -> None:
        self._time_us = time_us
        self._monotonic = 1000.0

    def time_us(self) -> int:
        """Give the wall clock: microseconds since 1970."""
        return self._time_us

    def monotonic(self) -> float:
        """Give seconds that only ``advance`` moves."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._monotonic += seconds
        self._time_us += int(seconds * 1_000_000)

    def jump(self, seconds: float) -> None:
        """Set the wall clock forwards or back, as an administrator would."""
        self._time_us += int(seconds * 1_000_000)


@dataclass(slots=True)
class Wire:
    """A connection that sends lines and reads frames, with nothing between."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    patience_s: float = PATIENCE_S
    """How long a frame may take to come."""
    _ids: "count[int]" = field(default_factory=lambda: count(1))

    def send(self, frame: Mapping[str, Any] | bytes) -> None:
        """Send a frame, or bytes as they are."""
        self.writer.write(frame if isinstance(frame, bytes) else json.dumps(frame).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        """Read the next frame; EOFError where the connection ends."""
        async with asyncio.timeout(self.patience_s):
            line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the daemon closed the connection")
        frame: dict[str, Any] = json.loads(line)
        return frame

    async def call(self, event: str, data: Mapping[str, Any] | None = None, **frame: Any) -> dict[str, Any]:
        """Send a request and read its one answer, which must be the next frame for its id."""
        ident = frame.pop("id", f"w{next(self._ids)}")
        self.send({"event": event, "data": data or {}, "id": ident, **frame})
        while True:
            answer = await self.receive()
            if answer["id"] == ident:
                return answer

    async def wait_closed(self) -> None:
        """Read until the daemon closes."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                await self.reader.read()

    def close(self) -> None:
        """Hang up."""
        self.writer.close()


class RunningDaemon:
    """A daemon that serves, and what it told since."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._heard: list[StoredEvent] = []
        self._channel = daemon.hub.attach(self, ("*",), None)

    @property
    def bus(self) -> Bus:
        """The bus that plugins have."""
        return self.daemon.bus

    @property
    def paths(self) -> Paths:
        """Where its files are."""
        return self.daemon.paths

    def deliver(self, batch: Batch) -> None:
        """Remember what was told."""
        self._heard.extend(batch.events)

    def emitted(self, pattern: str = "*") -> list[dict[str, Any]]:
        """List the data of what was told since the start and matches."""
        self.daemon.hub.settle(self._channel)
        return [json.loads(event.data) for event in self._heard if matches(pattern, event.event)]

    def events(self, pattern: str = "*") -> Sequence[StoredEvent]:
        """List what was told since the start and matches."""
        self.daemon.hub.settle(self._channel)
        return [event for event in self._heard if matches(pattern, event.event)]

    async def call_raw(self, event: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask over the socket; give the reply's data, or raise AssertionError with the error."""
        async with self.connect() as wire:
            answer = await wire.call(event, data)
        assert answer["type"] == "reply", answer
        reply: dict[str, Any] = answer["data"]
        return reply

    @asynccontextmanager
    async def connect(self, *, patience_s: float = PATIENCE_S) -> AsyncIterator[Wire]:
        """Open a connection of one's own."""
        reader, writer = await asyncio.open_unix_connection(self.paths.socket, limit=4 * 1024 * 1024)
        wire = Wire(reader, writer, patience_s)
        try:
            yield wire
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def running_daemon(
    *,
    home: Path | None = None,
    plugins: Sequence[Path] = (),
    settings: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[RunningDaemon]:
    """Run a whole daemon in this process, on a socket and a database of its own.

    ``home`` is kept; without it a temporary one is made and removed. ``plugins`` are single files.
    ``settings`` as in ksi.toml; bugs in handlers are raised (``strict``) unless it says otherwise.
    """
    base = Path(tempfile.mkdtemp(prefix="ksi-")) if home is None else None
    paths = Paths(home or Path(str(base)) / "var")
    try:
        for plugin in plugins:
            paths.plugins.mkdir(parents=True, exist_ok=True)
            shutil.copy(plugin, paths.plugins)
        daemon = Daemon(paths, Settings(**{"strict": True, **(settings or {})}), clock=clock)
        with home_lock(paths) as recovered:
            async with _serving(daemon, recovered=recovered) as running:
                yield running
    finally:
        if base is not None:
            shutil.rmtree(base, ignore_errors=True)


@asynccontextmanager
async def _serving(daemon: Daemon, *, recovered: bool) -> AsyncIterator[RunningDaemon]:
    ready: asyncio.Future[Daemon] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        try:
            await daemon.serve(recovered=recovered, ready=ready.set_result)
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    try:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(serve())
            running = RunningDaemon(await ready)
            try:
                yield running
            finally:
                daemon.lifecycle.stop("test", 1.0)
                # Whatever the test came to, the daemon ends in its own way. What ended it says more than
                # the EOFError of a test that talked to it: it is raised in place of that.
                await asyncio.wait([serving])
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group


@pytest.fixture
async def ksi() -> AsyncIterator[RunningDaemon]:
    """A daemon with the built-in plugins, strict, in a home of its own."""
    async with running_daemon() as running:
        yield running
