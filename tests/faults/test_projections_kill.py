"""A projection is built again while events arrive and the daemon is killed: nothing missed or doubled."""

import random
from asyncio import Event, TaskGroup
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest

from ksi_common.async_db import AsyncSQLiteDB
from tests.support.audit import Audit
from tests.support.daemon_process import DaemonProcess
from tests.support.pipeline import call_line, connected, expect_reply, pipeline
from tests.support.scale import scaled

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "plugins"
KILLS = scaled(3, 20)
PUBLISHERS = 2
KEYS = 50


@asynccontextmanager
async def projecting() -> AsyncIterator[DaemonProcess]:
    """Run a daemon with the two projections of the examples."""
    process = DaemonProcess()
    for name in ("state_values", "popularity"):
        process.add_plugin(name, (EXAMPLES / f"{name}.py").read_text())
    async with process:
        yield process


async def set_until(enough: Event, daemon: DaemonProcess, name: str) -> None:
    """Set one key after the other; go on with the next daemon where this one is killed.

    At its end everything is answered, and nothing more will be stored.
    """
    numbers = count()

    def lines() -> Iterator[bytes]:
        while not enough.is_set():
            number = next(numbers)
            yield call_line("state:set", {"key": f"{name}-{number % KEYS}", "value": number})

    while not enough.is_set():
        await daemon.serving.wait()
        with suppress(ConnectionError):
            await pipeline(daemon.socket, lines(), expect_reply, window=32)


async def ask(daemon: DaemonProcess, event: str, data: dict[str, Any]) -> dict[str, Any]:
    """Ask once."""
    async with connected(daemon.socket) as (reader, writer):
        writer.write(call_line(event, data))
        answer = orjson.loads(await reader.readline())
    assert answer["type"] == "reply", answer
    found: dict[str, Any] = answer["data"]
    return found


async def caught_up(daemon: DaemonProcess) -> None:
    """Wait until readers see everything there is."""
    cursor = (await ask(daemon, "system:info", {}))["log"]["cursor"]
    for name in ("state_values", "popularity"):
        found = await ask(daemon, "projection:get", {"name": name, "cursor": cursor, "key": _any_key(name)})
        assert found["error"] is None


async def replayed(daemon: DaemonProcess) -> dict[str, Any]:
    """Replay the log into a sandbox; give what came of it."""
    async with connected(daemon.socket) as (reader, writer):
        writer.write(call_line("event:replay", {"into": "sandbox"}))
        while True:
            frame = orjson.loads(await reader.readline())
            assert frame["type"] == "item", frame
            if frame["data"]["done"]:
                found: dict[str, Any] = frame["data"]
                return found


def _any_key(name: str) -> str | Sequence[str]:
    return ["global", "p0-0"] if name == "state_values" else "p0-0"


async def changes_seen(daemon: DaemonProcess) -> int:
    found = await ask(daemon, "projection:get", {"name": "popularity", "key": "p0-0"})
    return int(found["value"]["changes"]) if found["found"] else 0


async def entries(daemon: DaemonProcess, name: str) -> dict[str, Any]:
    page = await ask(daemon, "projection:query", {"name": name, "limit": 1000})
    return {str(entry["key"]): entry["value"] for entry in page["entries"]}


@pytest.mark.slow
@pytest.mark.timeout(240 + 10 * KILLS)
async def test_readers_see_the_old_state_or_the_new_one_through_rebuilds_and_kills() -> None:
    draw = random.Random(5)
    async with projecting() as daemon, TaskGroup() as tasks:
        enough = Event()
        setting = [tasks.create_task(set_until(enough, daemon, f"p{n}")) for n in range(PUBLISHERS)]
        seen = 0
        for _ in range(KILLS):
            for name in ("state_values", "popularity"):
                await ask(daemon, "projection:rebuild", {"name": name})
            for _ in range(draw.randint(1, 40)):
                changes = await changes_seen(daemon)
                assert changes >= seen, "a reader went back"
                seen = changes
            await daemon.kill()
            await daemon.start()
        enough.set()
        for task in setting:
            await task
        await caught_up(daemon)
        last = await replayed(daemon)
        values, counts = await entries(daemon, "state_values"), await entries(daemon, "popularity")
        told = [event for event in await Audit(daemon.database).read_on() if event.event == "state:changed"]
        async with AsyncSQLiteDB(daemon.database, read_only=True) as database:
            state = await database.fetch("SELECT namespace, key, value FROM state")
    assert [table for table in last["tables"] if table["difference"] is not None] == []
    assert {str([row["namespace"], row["key"]]): row["value"] for row in state} == {
        key: value["value"] for key, value in values.items()
    }
    assert sum(value["changes"] for value in counts.values()) == len(told) > seen > 0
