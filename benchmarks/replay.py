"""Measure what is made of the log: how fast it is read, applied, replayed and compared; also under load.

python benchmarks/replay.py                 100,000 events, three repetitions
python benchmarks/replay.py 1000000 1 --only sandbox
python benchmarks/replay.py --markdown

Beside it the `eventsourcing` library does the same work on SQLite: it reads its log by pages, and applies it
to a table as its guide says, each event with its position in one transaction.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import deque
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog
from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore, SQLiteTrackingRecorder

from benchmarks import measure
from benchmarks.measure import Spread
from ksi_common.events.replay import Replay, Replayed
from ksi_common.events.state import Changed
from ksi_daemon.database.errors import UnitInterrupted
from ksi_daemon.testing import RunningDaemon, running_daemon

if TYPE_CHECKING:
    from collections.abc import Callable

    from ksi_daemon.database import Transaction
    from ksi_daemon.eventlog import EventLog

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "plugins"
SETTINGS = {"limits": {"handler_s": 3600}, "strict": True}
UNIT = 100
IN_FLIGHT = 20
KEYS = 5_000
ARRIVING = 5_000
"""Events a second, while projections are built again."""
LIBRARY_EVENTS = 20_000
"""Of its applying, which takes its time."""
AIMS = {"read": 100_000, "a table": 20_000, "documents by key": 20_000, "a sandbox": 20_000}

Rates = dict[str, list[float]]


def unit_of(numbers: range) -> Callable[[Transaction], None]:
    """Make a unit that does what the store of state does, without requests."""

    def unit(tx: Transaction) -> None:
        for number in numbers:
            key = f"k{number % KEYS}"
            tx.execute("INSERT OR REPLACE INTO state VALUES ('global', ?, ?, NULL)", (key, str(number)))
            tx.tell(Changed(namespace="global", key=key, value=number))

    return unit


async def fill(ksi: RunningDaemon, events: int) -> None:
    """Tell changes of state."""
    told: deque[asyncio.Future[None]] = deque()
    for start in range(0, events, UNIT):
        told.append(ksi.daemon.database.write(unit_of(range(start, min(start + UNIT, events)))))
        if len(told) == IN_FLIGHT:
            await told.popleft()
    for unit in told:
        await unit
    for each in ksi.daemon.projections.all:
        await each.wait_for(ksi.daemon.hub.head)


async def read(log: EventLog, head: int) -> int:
    position = events = 0
    while position < head:
        page = await log.page(position, head, ("*",), None)
        position, events = page.last, events + len(page.events)
    return events


async def rebuild(ksi: RunningDaemon, name: str) -> int:
    """Build a projection again; give the events that were applied."""
    follower = ksi.daemon.projections.named(name)
    made = await follower.rebuild()
    await follower.wait_swapped(made)
    return made.applied


async def replay(ksi: RunningDaemon) -> Replayed:
    """Replay into a sandbox; fail where that is not what is live."""
    async for step in ksi.bus.stream(Replay(), timeout_s=3600):
        last = step
    differ = [table.difference for table in last.tables if table.difference]
    if differ:
        raise SystemExit(f"the sandbox is not what is live: {differ[0]}")
    return last


async def arriving(ksi: RunningDaemon) -> None:
    """Tell so many events a second at most, until cancelled; what comes late is not made up for."""
    loop = asyncio.get_running_loop()
    due, told = loop.time(), 0
    while True:
        with suppress(UnitInterrupted):  # one that took too long has left nothing, and is told again
            await ksi.daemon.database.write(unit_of(range(told, told + UNIT)))
            told += UNIT
        due = max(due + UNIT / ARRIVING, loop.time())
        await asyncio.sleep(due - loop.time())


async def under_load(ksi: RunningDaemon, rates: Rates) -> None:
    """Build projections again while events arrive; count what readers see in the end."""
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(arriving(ksi))
        first, started = ksi.daemon.hub.head, perf_counter()
        for name in ("state_values", "popularity"):
            began = perf_counter()
            applied = await rebuild(ksi, name)
            rates.setdefault(f"{name}, events arriving", []).append(applied / (perf_counter() - began))
        arrived = (ksi.daemon.hub.head - first) / (perf_counter() - started)
        rates.setdefault("events that arrived meanwhile", []).append(arrived)
        load.cancel()
        with suppress(asyncio.CancelledError):
            await load
    for each in ksi.daemon.projections.all:
        await each.wait_for(ksi.daemon.hub.head)
    await replay(ksi)


async def measure_sandbox(events: int, repetitions: int, rates: Rates) -> None:
    """Measure what `ksi replay` does, in a daemon without projections."""
    async with running_daemon(settings=SETTINGS) as ksi:
        await fill(ksi, events)
        for _ in range(repetitions):
            began = perf_counter()
            applied = (await replay(ksi)).applied
            rates.setdefault("a sandbox", []).append(applied / (perf_counter() - began))


async def measure_ksi(events: int, repetitions: int, rates: Rates) -> None:
    """Measure all of it in one daemon."""
    plugins = [EXAMPLES / "state_values.py", EXAMPLES / "popularity.py"]

    def note(title: str, number: int, began: float) -> None:
        rates.setdefault(title, []).append(number / (perf_counter() - began))

    async with running_daemon(plugins=plugins, settings=SETTINGS) as ksi:
        await fill(ksi, events)
        for _ in range(repetitions):
            began = perf_counter()
            note("read", await read(ksi.daemon.eventlog, ksi.daemon.hub.head), began)
            for title, name in (("a table", "state_values"), ("documents by key", "popularity")):
                began = perf_counter()
                note(title, await rebuild(ksi, name), began)
            began = perf_counter()
            note("a sandbox", (await replay(ksi)).applied, began)
            await under_load(ksi, rates)


class View(SQLiteTrackingRecorder):
    """A table of the library's user: each event and its position in one transaction, as its guide says."""

    def create(self) -> None:
        self.create_table()
        with self.datastore.transaction(commit=True) as c:
            c.execute("CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def apply(self, key: str, value: str, position: int) -> None:
        with self.datastore.transaction(commit=True) as c:
            self._insert_tracking(c, Tracking("demo", position))
            c.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))


def measure_library(events: int, rates: Rates) -> None:
    """Let the eventsourcing library read as many events, and apply some."""
    with tempfile.TemporaryDirectory(prefix="ksib") as folder:
        datastore = SQLiteDatastore(str(Path(folder, "events.db")))
        recorder = SQLiteApplicationRecorder(datastore)
        recorder.create_table()
        stream = uuid4()
        for start in range(0, events, UNIT):
            told = [
                StoredEvent(stream, n, "state:changed", b'{"key":"k%d","value":%d}' % (n % KEYS, n))
                for n in range(start, min(start + UNIT, events))
            ]
            recorder.insert_events(told)
        began, position, found = perf_counter(), 1, 0
        while page := recorder.select_notifications(position, 1000):
            found += len([json.loads(each.state) for each in page])
            position = page[-1].id + 1
        rates.setdefault("eventsourcing: read", []).append(found / (perf_counter() - began))
        view = View(datastore)
        view.create()
        began, position = perf_counter(), 1
        while position <= min(events, LIBRARY_EVENTS):
            for each in recorder.select_notifications(position, 1000):
                data = json.loads(each.state)
                view.apply(data["key"], str(data["value"]), each.id)
                position = each.id + 1
        rates.setdefault("eventsourcing: a table", []).append((position - 1) / (perf_counter() - began))
        datastore.close()


def show(rates: Rates, *, markdown: bool) -> None:
    """Print the rates."""
    lines = [("events a second", "median", "range", "aim")]
    for title, found in rates.items():
        spread = Spread(found)
        aim = f"{AIMS[title]:,}" if title in AIMS else ""
        lines.append((title, f"{spread.median:,.0f}", f"{spread.low:,.0f}-{spread.high:,.0f}", aim))
    for number, line in enumerate(lines):
        print(f"| {' | '.join(line)} |" if markdown else "".join(f"{cell:<34}" for cell in line).rstrip())
        if markdown and number == 0:
            print("|---|---:|---:|---:|")


def main() -> int:
    """Measure and print; what differs ends it with an error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("events", type=int, nargs="?", default=100_000)
    parser.add_argument("repetitions", type=int, nargs="?", default=3)
    parser.add_argument("--only", choices=("sandbox",))
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    measure.allow_many_connections()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # only figures are printed
    rates: Rates = {}
    if options.only == "sandbox":
        asyncio.run(measure_sandbox(options.events, options.repetitions, rates))
    else:
        asyncio.run(measure_ksi(options.events, options.repetitions, rates))
        for _ in range(options.repetitions):
            measure_library(options.events, rates)
    show(rates, markdown=options.markdown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
