"""Measure the log: its answers, its start, its retention; and its appends beside those of its peers.

python benchmarks/log.py                1,000,000 events, five repetitions: ten minutes
python benchmarks/log.py --quick        100,000 events, three short repetitions
python benchmarks/log.py --only rates   without the peers; --only ratios: without the log of many events
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from eventsourcing.persistence import StoredEvent
from eventsourcing.sqlite import SQLiteAggregateRecorder, SQLiteDatastore

from benchmarks import measure, peers, spine
from benchmarks.claims import Bound, Case
from benchmarks.measure import Spread
from ksi_common.clock import SystemClock
from ksi_common.envelope import EventEnvelope, event_context
from ksi_daemon.database import Database, Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.peers import Peer

NAMES = ("demo:told", "demo:changed", "demo:deleted", *(f"agent:did_{n}" for n in range(30)))
STREAMS, ACTORS, QUERIES = 2000, 50, 300
DATA = b'{"text":"%b"}' % (b"x" * 180)
QUERY_MS = 20
RATIOS = (
    ("1x1", "jetstream", None),
    ("1x64", "jetstream", 9.0),
    ("16x16", "jetstream", None),
    ("1x1", "valkey", 1.0),
    ("1x64", "valkey", 1.8),
    ("16x16", "valkey", None),
)
LIBRARY = "eventsourcing on SQLite, 1 in flight"


@dataclass(slots=True)
class Findings:
    """What was measured: values against bounds, and ratios by title with what they must be at least."""

    values: list[tuple[Bound, float]] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)
    ratios: list[tuple[str, Spread, float | None]] = field(default_factory=list)

    def lines(self) -> Iterator[Sequence[str]]:
        yield "what", "found", "range", "must be"
        for bound, value in self.values:
            sign = "at least" if bound.at_least else "at most"
            yield f"{bound.title}, {bound.unit}", f"{value:,.2f}", "", f"{sign} {bound.bound:,g}"
        for title, found in self.rates.items():
            spread = Spread(found)
            yield f"{title}, a second", f"{spread.median:,.0f}", f"{spread.low:,.0f}-{spread.high:,.0f}", ""
        for title, spread, at_least in self.ratios:
            must = f"at least x{at_least:g}" if at_least else ""
            yield title, f"x{spread.median:.2f}", f"{spread.low:.2f}-{spread.high:.2f}", must

    def missed(self) -> list[str]:
        values = [bound.title for bound, value in self.values if not bound.holds(value)]
        return values + [
            title for title, spread, at_least in self.ratios if at_least and spread.median < at_least
        ]


async def build(home: Path, events: int) -> None:
    """Fill a log with events of many names, streams, actors and correlations, and let it be indexed."""
    database = Database(
        home / "db" / "ksi.db",
        backups=home / "backups",
        clock=SystemClock(),
        published=lambda *_: None,
        failed=lambda error: sys.exit(f"the disk failed: {error}"),
    )
    chance = random.Random(1)
    async with database:
        database.start()
        told = 0
        while told < events:
            units = []
            for group in range(50):
                ident = f"{told}-{group}"
                actor = f"agent-{chance.randrange(ACTORS)}" if chance.random() < 0.1 else "owner"
                with event_context(EventEnvelope("demo:ask", {}, ident, f"c{told}-{group}", actor=actor)):
                    units.append(database.write(_telling(chance)))
            told += 500
            for unit in units:
                await unit
        while True:
            rows = await database.read("SELECT value FROM meta WHERE name = 'indexed_to'")
            if rows and rows[0][0] > database.head - 1000:
                return
            await asyncio.sleep(0.1)


def _telling(chance: random.Random) -> Callable[[Transaction], None]:
    chosen = [(chance.choice(NAMES), f"demo/{chance.randrange(STREAMS)}") for _ in range(10)]

    def unit(tx: Transaction) -> None:
        for number, (name, stream) in enumerate(chosen):
            tx.tell_raw(name, DATA, stream=stream if number % 3 == 0 else None)

    return unit


class Client:
    """Ask over the socket, one request after another."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(120)
        self._socket.connect(address)
        self._lines = self._socket.makefile("rb")

    def call(self, event: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self._socket.sendall(
            json.dumps({"event": event, "data": data or {}, "timeout_s": 600}).encode() + b"\n"
        )
        answer = json.loads(self._lines.readline())
        if answer["type"] != "reply":
            raise SystemExit(f"{event}: {answer}")
        reply: dict[str, Any] = answer["data"]
        return reply

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def measure_rates(findings: Findings, events: int) -> None:
    """Open a log of so many events, question it, read it from its beginning, and sweep most of it away."""
    with tempfile.TemporaryDirectory(prefix="ksib") as folder:
        home = Path(folder)
        asyncio.run(build(home, events))
        size = (home / "db" / "ksi.db").stat().st_size
        sweep_settings = {
            "KSI_RETENTION__MAX_STUBS": str(events // 10),
            "KSI_RETENTION__MAX_BYTES": str(events // 10 * len(DATA)),
        }
        with peers.ksi_daemon(settings=sweep_settings, home=home) as daemon:
            bound = Bound(f"opening a log of {events:,} events", 1.0, 0.5, "s")
            findings.values.append((bound, daemon.started_s))
            client = Client(daemon.address)
            measure_queries(findings, client)
            found = measure.run_load(
                "catch_up.py", [daemon.address, "--events", events, "--pattern", "*"], daemon, one_cpu=False
            )
            findings.values.append(
                (Bound("catch-up", 100_000, 300_000, "events/s", at_least=True), found.rate)
            )
            start = time.perf_counter()
            client.call("event:sweep")
            took_s = time.perf_counter() - start
            client.close()
        left = (home / "db" / "ksi.db").stat().st_size
        findings.values.append(
            (Bound("bytes left of 90 % swept away", 0.25, 0.12, "of the file"), left / size)
        )
        findings.rates["rows swept away"] = [events * 0.9 / took_s]


def measure_queries(findings: Findings, client: Client) -> None:
    """Ask for the newest 100 by each key, and time the slowest of a hundred."""
    chance = random.Random(2)
    newest = client.call("event:query", {"limit": 1})["events"][0]["time"]
    oldest = client.call("event:query", {"limit": 1, "reverse": False})["events"][0]["time"]
    some = client.call("event:query", {"limit": 1000, "reverse": False})["events"]
    questions: dict[str, Callable[[], Mapping[str, Any]]] = {
        "name": lambda: {"patterns": [chance.choice((*NAMES, "state:*", "agent:*"))]},
        "correlation": lambda: {"correlation_id": chance.choice(some)["correlation_id"]},
        "stream": lambda: {"stream": f"demo/{chance.randrange(STREAMS)}"},
        "actor": lambda: {"agent_id": f"agent-{chance.randrange(ACTORS)}"},
        "time": lambda: {"since": oldest, "until": newest, "reverse": chance.random() < 0.5},
    }
    for key, question in questions.items():
        times = []
        for _ in range(QUERIES):
            asked = question()
            start = time.perf_counter()
            client.call("event:query", asked)
            times.append(time.perf_counter() - start)
        p99_ms = sorted(times)[len(times) * 99 // 100] * 1000
        findings.values.append((Bound(f"event:query by {key}, p99", QUERY_MS, 5, "ms"), p99_ms))


def measure_ratios(findings: Findings, options: argparse.Namespace) -> None:
    """Append, acknowledged from the disk, beside JetStream, Valkey and a library; interleaved."""
    cases = [
        Case(subject, shape)
        for shape in ("1x1", "1x64", "16x16")
        for subject in ("publish", "jetstream", "valkey")
    ]
    with ExitStack() as stack:
        servers: dict[str, Peer] = {
            name: stack.enter_context(spine.SERVERS[name]()) for name in ("ksi", "jetstream", "valkey")
        }
        for repetition in range(options.repetitions):
            print(f"repetition {repetition + 1} of {options.repetitions}", file=sys.stderr)
            for case in cases:
                rate = spine.run_case(case, servers, options.seconds).rate
                findings.rates.setdefault(str(case), []).append(rate)
            findings.rates.setdefault(LIBRARY, []).append(library_rate(options.seconds))
    for shape, peer, at_least in RATIOS:
        findings.ratios.append(
            (f"KSI publish {shape}: {peer}", _ratio(findings, shape, f"{peer} {shape}"), at_least)
        )
    findings.ratios.append((f"KSI publish 1x1: {LIBRARY}", _ratio(findings, "1x1", LIBRARY), None))


def _ratio(findings: Findings, shape: str, against: str) -> Spread:
    pairs = zip(findings.rates[f"publish {shape}"], findings.rates[against], strict=True)
    return Spread([ours / theirs for ours, theirs in pairs])


def library_rate(seconds: float) -> float:
    """Append single events with the eventsourcing library, each a commit in a file in WAL mode."""
    with tempfile.TemporaryDirectory(prefix="ksib") as folder:
        datastore = SQLiteDatastore(str(Path(folder, "events.db")))
        recorder = SQLiteAggregateRecorder(datastore)
        recorder.create_table()
        stream, version, start = uuid4(), 0, time.perf_counter()
        while (took_s := time.perf_counter() - start) < seconds:
            recorder.insert_events([StoredEvent(stream, version, "demo:told", DATA)])
            version += 1
        datastore.close()
    return version / took_s


def main() -> int:
    """Measure, print, and end with 1 where something is not as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("rates", "ratios"))
    parser.add_argument("--events", type=int)
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    options.seconds = 0.4 if options.quick else 1.0
    options.repetitions = options.repetitions or (3 if options.quick else 5)
    findings = Findings()
    measure.allow_many_connections()
    if options.only != "ratios":
        measure_rates(findings, options.events or (100_000 if options.quick else 1_000_000))
    if options.only != "rates":
        measure_ratios(findings, options)
    for number, line in enumerate(findings.lines()):
        print(
            f"| {' | '.join(line)} |"
            if options.markdown
            else "  ".join(f"{cell:<44}" for cell in line).rstrip()
        )
        if options.markdown and number == 0:
            print("|---|---:|---:|---|")
    missed = findings.missed()
    print(f"{len(missed)} missed" + "".join(f"\n  {title}" for title in missed), file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
