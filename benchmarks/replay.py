"""How fast the log is read, applied to a table and a document, and replayed into a sandbox.

python benchmarks/replay.py [EVENTS]        default 100,000
"""

import asyncio
import sys
from pathlib import Path
from time import perf_counter

from ksi_common.events.projection import Rebuild
from ksi_common.events.replay import Replay
from ksi_common.events.state import Changed
from ksi_daemon.database import Transaction
from ksi_daemon.eventlog import EventLog
from ksi_daemon.testing import RunningDaemon, running_daemon

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "plugins"
UNIT = 200
KEYS = 5_000


async def fill(ksi: RunningDaemon, events: int) -> None:
    """Tell changes of state, and make them, as the store does but without requests."""
    for start in range(0, events, UNIT):

        def unit(tx: Transaction, start: int = start) -> None:
            for number in range(start, min(start + UNIT, events)):
                key = f"k{number % KEYS}"
                tx.execute("INSERT OR REPLACE INTO state VALUES ('global', ?, ?, NULL)", (key, str(number)))
                tx.tell(Changed(namespace="global", key=key, value=number))

        await ksi.daemon.database.write(unit)


async def read(log: EventLog, head: int) -> int:
    position = events = 0
    while position < head:
        page = await log.page(position, head, ("*",), None)
        position, events = page.last, events + len(page.events)
    return events


async def rebuild(ksi: RunningDaemon, name: str) -> int:
    follower = ksi.daemon.projections.named(name)
    await ksi.bus.call(Rebuild(name=name))
    made = follower.shadow or follower.live
    assert made is not None
    if made.role == "shadow":
        await follower.wait_swapped(made)
    return made.applied


def report(what: str, events: int, started: float) -> None:
    seconds = perf_counter() - started
    print(f"{what:<28} {events:>9,} events  {seconds:7.2f} s  {events / seconds:>9,.0f}/s")


async def main(events: int) -> None:
    plugins = [EXAMPLES / "state_values.py", EXAMPLES / "popularity.py"]
    async with running_daemon(plugins=plugins, settings={"limits": {"handler_s": 3600}}) as ksi:
        started = perf_counter()
        await fill(ksi, events)
        report("told (units of 200)", events, started)
        for each in ksi.daemon.projections.all:
            await each.wait_for(ksi.daemon.hub.head)
        started = perf_counter()
        report("read", await read(ksi.daemon.eventlog, ksi.daemon.hub.head), started)
        for name in ("state_values", "popularity"):
            started = perf_counter()
            report(f"rebuilt: {name}", await rebuild(ksi, name), started)
        started = perf_counter()
        async for step in ksi.bus.stream(Replay()):
            last = step
        report("replayed and compared", last.applied, started)
        assert [table.difference for table in last.tables] == [None], last.tables


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
