"""How many completions a second the daemon brings to their end, and what it adds to one.

python benchmarks/completions.py [--seconds 5] [--sessions 64] [--markdown] [--profile]

The mock provider answers at once, so that everything that is measured is the daemon's: accepted (on disk),
begun (on disk), answered, its line in the session's file on disk, its last row and its last event committed,
and the event seen by who follows. At the end every line and row is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import pstats
import sqlite3
import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import orjson
import uvloop

from benchmarks import peers
from benchmarks.outcome import percentile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RATE_AT_LEAST = 1000.0
ADDED_AT_MOST_MS = 5.0
PROMPT = "Say in one sentence what a fox does when it rains, and why."
IN_FLIGHT = 2
"""Of each session: what follows waits already when one ends."""
ONE_BY_ONE = 300


@dataclass
class Load(asyncio.Protocol):
    """Ask in each session again whenever an answer of it has come; remember how long each took."""

    sessions: int
    in_flight: int
    limit: int | None = None
    took_ms: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    is_stopped: bool = False
    _asked: dict[str, float] = field(default_factory=dict)
    _count: int = 0
    _rest: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send({"event": "event:subscribe", "id": "sub", "data": {"patterns": ["completion:result"]}})

    def start(self) -> None:
        for number in range(self.sessions * self.in_flight):
            self._ask(f"s{number % self.sessions}")

    def data_received(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        now = time.perf_counter()
        for line in lines:
            frame = orjson.loads(line)
            if frame["type"] == "error":
                self._fail(line.decode())
            elif frame["id"] == "sub" and frame["type"] == "item":
                self._take(frame["data"]["data"], now)
            elif frame["id"] == "sub" and not self.ready.done():
                self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost: {exc}")

    def _take(self, result: dict[str, str], now: float) -> None:
        self.took_ms.append((now - self._asked.pop(result["request_id"])) * 1e3)
        self.ended.append(now)
        if not self.is_stopped and (self.limit is None or self._count < self.limit):
            self._ask(result["session_id"])
        elif not self._asked and not self.done.done():
            self.done.set_result(None)

    def _ask(self, session_id: str) -> None:
        self._count += 1
        request_id = f"q{self._count}"
        self._asked[request_id] = time.perf_counter()
        asked = {"prompt": PROMPT, "session_id": session_id, "request_id": request_id}
        self._send({"event": "completion:async", "id": request_id, "data": asked})

    def _send(self, frame: dict[str, object]) -> None:
        self._transport.write(orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE))

    def _fail(self, reason: str) -> None:
        for future in (self.ready, self.done):
            if not future.done():
                future.set_exception(RuntimeError(reason))


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run came to; CPU is the daemon's, of all its threads."""

    rate: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    count: int


@contextmanager
def daemon(sessions: int, interpreter: Sequence[str] = ()) -> Iterator[peers.Peer]:
    """Run a daemon whose answers are made up at once."""
    plugins = {"completion": {"concurrency": sessions, "mock": {"concurrency": sessions}}}
    settings = {"KSI_PROVIDER": "mock", "KSI_PLUGINS": orjson.dumps(plugins).decode()}
    with peers.ksi_daemon(interpreter, settings) as peer:
        yield peer


async def run(peer: peers.Peer, load: Load, seconds: float | None) -> Figures:
    """Load a daemon for some seconds, or until the load's limit."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(lambda: load, peer.address)
    await asyncio.sleep(0.2)
    process = peer.processes[0]
    before, began = sum(process.cpu_times()[:2]), time.perf_counter()
    load.start()
    if seconds is not None:
        loop.call_later(seconds, setattr, load, "is_stopped", True)
    await load.done
    took_s = time.perf_counter() - began
    cpu_s = sum(process.cpu_times()[:2]) - before
    load.ready.cancel()
    transport.close()
    count = len(load.ended)
    took = sorted(load.took_ms)
    return Figures(count / took_s, cpu_s / count * 1e6, percentile(took, 0.5), percentile(took, 0.99), count)


def check(home: Path, wanted: int) -> None:
    """Count what is on disk: a line and a row for each answer."""
    lines = sum(path.read_bytes().count(b"\n") for path in (home / "logs" / "responses").glob("s*.jsonl"))
    with sqlite3.connect(home / "db" / "ksi.db") as database:
        ((rows,),) = database.execute("SELECT count(*) FROM completions WHERE state = 'completed'").fetchall()
        ((told,),) = database.execute("SELECT count(*) FROM log WHERE name = 'completion:result'").fetchall()
    if not lines == rows == told == wanted:
        raise SystemExit(f"{wanted} answers, but {lines} lines, {rows} rows and {told} events")


def measure(sessions: int, seconds: float, repetitions: int) -> tuple[Sequence[Figures], Sequence[Figures]]:
    """Measure many at once, and one after another, each several times on a daemon of its own."""
    many, one = [], []
    for _ in range(repetitions):
        with daemon(sessions) as peer:
            alone = uvloop.run(run(peer, Load(1, 1, limit=ONE_BY_ONE), None))
            one.append(alone)
        with daemon(sessions) as peer:
            together = uvloop.run(run(peer, Load(sessions, IN_FLIGHT), seconds))
            many.append(together)
            check(peer.home, together.count)
    return many, one


def profile(sessions: int, seconds: float) -> None:
    """Print where the loop's time goes; the writer's thread is not seen."""
    with tempfile.TemporaryDirectory(prefix="ksip") as folder:
        dump = Path(folder) / "profile"
        with daemon(sessions, ["-m", "cProfile", "-o", str(dump)]) as peer:
            figures = uvloop.run(run(peer, Load(sessions, IN_FLIGHT), seconds))
        print(f"{figures.rate:,.0f}/s under the profiler")
        pstats.Stats(str(dump)).sort_stats("tottime").print_stats(45)


def main() -> None:
    """Measure, print, and end with 1 where a figure is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.profile:
        profile(options.sessions, options.seconds)
        return
    many, one = measure(options.sessions, options.seconds, options.repetitions)
    rate = statistics.median(figures.rate for figures in many)
    added_ms = statistics.median(figures.p50_ms for figures in one)
    rows = [
        ("completions/s", f"{rate:,.0f}", f">= {RATE_AT_LEAST:,.0f}"),
        ("daemon's CPU for one, us", f"{statistics.median(f.cpu_us for f in many):,.0f}", ""),
        ("one alone, ms (median)", f"{added_ms:.2f}", f"< {ADDED_AT_MOST_MS:g}"),
        ("one alone, ms (p99)", f"{statistics.median(f.p99_ms for f in one):.2f}", ""),
    ]
    bar = "| {} | {} | {} |" if options.markdown else "{:28} {:>10}  {}"
    for row in rows:
        print(bar.format(*row))
    if rate < RATE_AT_LEAST or added_ms >= ADDED_AT_MOST_MS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
