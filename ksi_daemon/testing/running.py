"""A whole daemon in the process of a test: asked, listened to, stopped, crashed and started again."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from ksi_common.bus import Bus
from ksi_common.clock import Clock
from ksi_common.envelope import StoredEvent
from ksi_common.errors import KSIError, error_from_wire
from ksi_common.messages import matches
from ksi_common.paths import Paths
from ksi_daemon.daemon import Daemon
from ksi_daemon.hub import Batch
from ksi_daemon.lock import home_lock
from ksi_daemon.settings import Settings
from ksi_daemon.testing.crashing import CrashableDaemon, CrashingDatabase, CrashPoint, Moment
from ksi_daemon.testing.recording import (
    Difference,
    Exchange,
    Recording,
    differences,
    exported,
    load_recording,
)
from ksi_daemon.testing.wire import PATIENCE_S, Wire

Make = Callable[[], CrashableDaemon]


class RunningDaemon:
    """A daemon that serves, and what it told since the test began."""

    def __init__(self, make: Make, tasks: asyncio.TaskGroup) -> None:
        self._make = make
        self._tasks = tasks
        self._heard: list[StoredEvent] = []
        self._news = asyncio.Event()
        self._recording: Recording | None = None
        self._crashed = asyncio.Event()

    @property
    def bus(self) -> Bus:
        """The bus that plugins have."""
        return self.daemon.bus

    @property
    def paths(self) -> Paths:
        """Where its files are."""
        return self.daemon.paths

    # Asking.

    async def call_raw(self, event: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask over the socket; give the reply's data, or raise AssertionError with the error."""
        answer = await self._exchange(event, data or {})
        assert answer["type"] == "reply", answer
        reply: dict[str, Any] = answer["data"]
        return reply

    async def call_error(self, event: str, data: Mapping[str, Any] | None = None) -> KSIError:
        """Ask for what must be refused; give the error, or raise AssertionError with the reply."""
        answer = await self._exchange(event, data or {})
        assert answer["type"] == "error", answer
        return error_from_wire(answer["error"])

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

    # What was told.

    def emitted(self, pattern: str = "*") -> list[dict[str, Any]]:
        """List the data of what was told since the start and matches."""
        return [json.loads(event.data) for event in self.events(pattern)]

    def events(self, pattern: str = "*") -> Sequence[StoredEvent]:
        """List what was told since the start and matches."""
        self.daemon.hub.settle(self.daemon.heard)
        return [event for event in self._heard if matches(pattern, event.event)]

    async def wait_emitted(self, pattern: str, count: int = 1) -> list[dict[str, Any]]:
        """Return once ``count`` events that match were told since the start, and give their data."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while len(self.events(pattern)) < count:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            told = sorted({event.event for event in self.events()})
            raise AssertionError(
                f"{pattern} was told {len(self.events(pattern))} times, not {count}; told were {told}"
            ) from None
        return self.emitted(pattern)

    def deliver(self, batch: Batch) -> None:
        """Remember what was told; the hub calls this."""
        self._heard.extend(batch.events)
        self._news.set()

    # Recordings.

    @contextmanager
    def record(self, path: Path | None = None) -> Iterator[Recording]:
        """Keep what is asked in the block, the answers, and what is told because of it; write ``path``."""
        self._recording = recording = Recording()
        try:
            yield recording
        finally:
            self._recording = None
            for exchange in recording.exchanges:
                self._add_told(exchange)
        if path is not None:
            recording.save(path)

    async def replay(self, recording: Recording | Path, *, ignoring: Iterable[str] = ()) -> Recording:
        """Ask again what was recorded; raise AssertionError that lists all that is not as it was.

        ``ignoring``: names of fields that may differ, as times do.
        """
        before = load_recording(recording) if isinstance(recording, Path) else recording
        found: list[Difference] = []
        with self.record() as now:
            for number, asked in enumerate(before.exchanges, start=1):
                await self._exchange(asked.event, asked.data)
                exchange = now.exchanges[-1]
                with suppress(TimeoutError):
                    await self._wait_told(exchange, len(asked.told))
                found += differences(number, asked, exchange, ignoring=ignoring)
        assert not found, "not as recorded:\n" + "\n".join(map(str, found))
        return now

    async def tell_again(self, export: Path, pattern: str = "*") -> int:
        """Tell what a file of ``ksi export`` says was told and matches; give how many events that were.

        They are stored in this daemon's log, with ids, numbers and times of now.
        """
        told = exported(export, pattern)
        for name, data in told:
            await self.daemon.database.write_apart(lambda tx, name=name, data=data: tx.tell_raw(name, data))  # type: ignore[misc]
        return len(told)

    # Ends and starts.

    @asynccontextmanager
    async def crash(
        self, moment: Moment, pattern: str, *, patience_s: float = PATIENCE_S
    ) -> AsyncIterator[None]:
        """Crash because of what is done in the block, and start again after it.

        ``before_commit``: as a unit of work of a matching event is about to commit; ``after_commit``: it has,
        and nobody knows. What is asked in the block gets no answer: its EOFError ends the block quietly.
        Where the moment comes after the block, as that of a subscriber or a timer may, it is waited for.
        """
        database = self.daemon.database
        assert isinstance(database, CrashingDatabase)
        database.arm(CrashPoint(moment, pattern), self._crash)
        with suppress(EOFError, ConnectionError):
            yield
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._crashed.wait()
        database.disarm()
        assert database.crashed, f"the daemon did not crash: no unit of work of {pattern} was {moment}"
        async with asyncio.timeout(PATIENCE_S):
            await self._crashed.wait()
        await asyncio.wait([self._serving])
        await self.start(recovered=True)

    async def restart(self) -> None:
        """Stop in the daemon's own way, draining, and start again on the same home."""
        await self.stop()
        await self.start(recovered=False)

    async def start(self, *, recovered: bool) -> None:
        """Bring a daemon to life on the home; return when it serves."""
        self._crashed.clear()
        self.daemon = self._make()
        self.daemon.tap = self
        ready: asyncio.Future[Daemon] = asyncio.get_running_loop().create_future()
        self._serving = self._tasks.create_task(self._serve(ready, recovered=recovered))
        await ready

    async def stop(self) -> None:
        """Stop in the daemon's own way."""
        self.daemon.lifecycle.stop("test", 1.0)
        await asyncio.wait([self._serving])
        self.daemon.hub.settle(self.daemon.heard)

    async def _serve(self, ready: asyncio.Future[Daemon], *, recovered: bool) -> None:
        try:
            await self.daemon.serve(recovered=recovered, ready=ready.set_result)
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    def _crash(self) -> None:
        self._serving.cancel()
        self._crashed.set()

    async def _exchange(self, event: str, data: Mapping[str, Any]) -> dict[str, Any]:
        async with self.connect() as wire:
            answer = await wire.call(event, data)
        if self._recording is not None:
            failed = answer["type"] == "error"
            self._recording.exchanges.append(
                Exchange(
                    event,
                    data,
                    reply=None if failed else answer["data"],
                    error=answer["error"]["code"] if failed else None,
                    correlation_id=answer.get("correlation_id", ""),
                )
            )
        return answer

    def _add_told(self, exchange: Exchange) -> None:
        exchange.told = [
            (event.event, json.loads(event.data))
            for event in self.events()
            if event.correlation_id == exchange.correlation_id
        ]

    async def _wait_told(self, exchange: Exchange, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            self._add_told(exchange)
            while len(exchange.told) < count:
                self._news.clear()
                await self._news.wait()
                self._add_told(exchange)


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
    chosen = Settings(**{"strict": True, **(settings or {})})
    try:
        for plugin in plugins:
            paths.plugins.mkdir(parents=True, exist_ok=True)
            shutil.copy(plugin, paths.plugins)

        def make() -> CrashableDaemon:
            return CrashableDaemon(paths, chosen, clock=clock)

        with home_lock(paths) as recovered:
            async with _serving(make, recovered=recovered) as running:
                yield running
    finally:
        if base is not None:
            shutil.rmtree(base, ignore_errors=True)


@asynccontextmanager
async def _serving(make: Make, *, recovered: bool) -> AsyncIterator[RunningDaemon]:
    try:
        async with asyncio.TaskGroup() as tasks:
            running = RunningDaemon(make, tasks)
            await running.start(recovered=recovered)
            try:
                yield running
            finally:
                # Whatever the test came to, the daemon ends in its own way. What ended it says more than
                # the EOFError of a test that talked to it: it is raised in place of that.
                await running.stop()
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
