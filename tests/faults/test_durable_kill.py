"""The effect of a durable subscriber is there exactly once, however often the daemon is killed."""

import random
from asyncio import Event, TaskGroup
from collections.abc import Sequence
from contextlib import suppress
from itertools import count, takewhile

import pytest

from ksi_common.async_db import AsyncSQLiteDB
from tests.faults.consumer_twins import faulty
from tests.support.audit import Audit
from tests.support.daemon_process import DaemonProcess
from tests.support.pipeline import call_line, expect_reply, pipeline
from tests.support.scale import scaled
from tests.support.waiting import eventually

KILLS = scaled(3, 20)
EACH = scaled(200, 1000)
"""Effects between two kills, about."""

LEDGER = """
from ksi_common.events.state import Changed
from ksi_daemon.plugin import Database, Transaction, hookimpl, subscriber

@hookimpl
def ksi_migrations():
    return {1: "CREATE TABLE ledger (number INTEGER PRIMARY KEY, value);"}

@subscriber(durable=True, start="beginning")
async def book(change: Changed, database: Database) -> None:
    def unit(tx: Transaction) -> None:
        tx.execute("INSERT INTO ledger (value) VALUES (?)", (change.value,))

    await database.write(unit)
"""


async def kill_and_audit(daemon: DaemonProcess, kills: int, each: int) -> None:
    """Have it book what is told, kill it again and again, and hold the ledger against the log."""
    draw = random.Random(7)
    enough = Event()
    async with TaskGroup() as tasks:
        tasks.create_task(_tell(daemon, enough))
        for _ in range(kills):
            goal = len(await _booked(daemon)) + draw.randint(1, each)
            await eventually(lambda goal=goal: _has(daemon, goal))  # type: ignore[misc]
            await daemon.kill()
            await daemon.start()
        enough.set()
    log = await Audit(daemon.database).read_on()
    told = sum(event.event == "state:changed" for event in log)
    await eventually(lambda: _has(daemon, told))
    booked = await _booked(daemon)
    values = [
        int(event.data.split(b'"value":')[1].split(b",")[0])
        for event in log
        if event.event == "state:changed"
    ]
    assert booked == values, f"{len(booked)} effects of {told} events"


async def _tell(daemon: DaemonProcess, enough: Event) -> None:
    """Tell until it is enough; then everything is answered, and nothing more will be stored."""
    numbers = takewhile(lambda _: not enough.is_set(), count())
    while not enough.is_set():
        await daemon.serving.wait()
        lines = (call_line("state:set", {"key": "k", "value": number}) for number in numbers)
        with suppress(ConnectionError):
            await pipeline(daemon.socket, lines, expect_reply, window=8)


async def _has(daemon: DaemonProcess, number: int) -> bool:
    return len(await _booked(daemon)) >= number


async def _booked(daemon: DaemonProcess) -> Sequence[int]:
    async with AsyncSQLiteDB(daemon.database, read_only=True) as db:
        return [row[0] for row in await db.fetch("SELECT value FROM ledger ORDER BY number")]


@pytest.mark.slow
@pytest.mark.timeout(240 + 15 * KILLS)
async def test_each_effect_is_there_once_through_kills() -> None:
    daemon = DaemonProcess()
    daemon.add_plugin("ledger", LEDGER)
    async with daemon:
        await kill_and_audit(daemon, KILLS, EACH)


@pytest.mark.timeout(240)
async def test_a_daemon_that_leaves_the_cursor_behind_is_found_out() -> None:
    daemon = faulty("leave_the_cursor_behind")
    daemon.add_plugin("ledger", LEDGER)
    async with daemon:
        with pytest.raises(AssertionError, match="effects of"):
            await kill_and_audit(daemon, 1, 100)
