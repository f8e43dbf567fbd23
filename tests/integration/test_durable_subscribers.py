"""Durable subscribers of plugins: each event is done, once in what it writes, or becomes a dead letter."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon import durable_listener
from ksi_daemon.consumers import rows
from ksi_daemon.consumers.ledger import Failures
from ksi_daemon.dead_letters import MAX_MESSAGE
from ksi_daemon.testing import PATIENCE_S, RunningDaemon, running_daemon
from tests.support.databases import writable
from tests.support.waiting import eventually

from .conftest import LogFile, WritePlugin

LEDGER = """
    import asyncio
    from collections import defaultdict

    from ksi_common.events.state import Changed
    from ksi_daemon.plugin import (
        Database, EventEnvelope, FailedPrecondition, Transaction, hookimpl, subscriber
    )

    tried: dict[str, list[object]] = defaultdict(list)
    told = asyncio.Condition()
    broken: set[object] = set()
    gate = asyncio.Event()
    gate.set()

    async def note(name: str, value: object) -> None:
        async with told:
            tried[name].append(value)
            told.notify_all()

    async def wait_tried(name: str, number: int) -> list[object]:
        async with told:
            await told.wait_for(lambda: len(tried[name]) >= number)
        return list(tried[name])

    @hookimpl
    def ksi_migrations():
        return {1: "CREATE TABLE ledger (key TEXT, value, correlation TEXT);"}

    @subscriber(durable=True, start="beginning", max_attempts=3, retry_s=0.01)
    async def book(change: Changed, envelope: EventEnvelope, database: Database) -> None:
        await note("book", change.value)
        await gate.wait()
        if change.value in broken:
            raise FailedPrecondition(f"{change.value} is no number")

        def unit(tx: Transaction) -> None:
            tx.execute(
                "INSERT INTO ledger VALUES (?, ?, ?)", (change.key, change.value, envelope.correlation_id)
            )

        await database.write(unit)
        if change.key == "late":
            raise ZeroDivisionError("after all was done")
        if change.key == "twice":
            await database.write(unit)

    @subscriber(durable=True)
    async def hear(change: Changed) -> None:
        await note("hear", change.value)
"""


def module() -> Any:
    return sys.modules["ksi_file_ledger"]


async def tried(name: str, number: int) -> list[Any]:
    async with asyncio.timeout(PATIENCE_S):
        values: list[Any] = await module().wait_tried(name, number)
    return values


async def set_(ksi: RunningDaemon, *values: Any, key: str = "k") -> None:
    for value in values:
        await ksi.call_raw("state:set", {"key": key, "value": value})


async def booked(ksi: RunningDaemon) -> list[Any]:
    return [row[0] for row in await ksi.daemon.database.read("SELECT value FROM ledger ORDER BY rowid")]


async def settled(ksi: RunningDaemon, name: str) -> None:
    """Wait until a subscriber has done everything."""

    async def is_done() -> bool:
        found = (await ksi.call_raw("event:consumers", {"name": name}))["consumers"]
        return [consumer["lag"] for consumer in found] == [0]

    await eventually(is_done, patience_s=PATIENCE_S)


async def test_one_goes_on_after_a_restart_where_it_was(write_plugin: WritePlugin, tmp_path: Path) -> None:
    home = tmp_path / "home" / "var"
    plugin = write_plugin(LEDGER, "ledger")
    async with running_daemon(home=home, plugins=[plugin]) as ksi:
        await set_(ksi, 1, 2, 3)
        await settled(ksi, "ledger.book")
        assert await booked(ksi) == [1, 2, 3]
        assert await tried("hear", 3) == [1, 2, 3]
    async with running_daemon(home=home, plugins=[plugin]) as ksi:
        await set_(ksi, 4)
        assert await tried("book", 1) == [4]
        assert await tried("hear", 1) == [4]
        await settled(ksi, "ledger.book")
        assert await booked(ksi) == [1, 2, 3, 4]


async def test_what_was_told_while_it_was_away_is_given_to_it(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "var"
    async with running_daemon(home=home) as ksi:
        await set_(ksi, 1, 2)
    async with running_daemon(home=home, plugins=[write_plugin(LEDGER, "ledger")]) as ksi:
        await set_(ksi, 3)
        assert await tried("book", 3) == [1, 2, 3]  # it wished to begin at the beginning
        assert await tried("hear", 1) == [3]


async def test_one_that_begins_now_is_given_all_that_is_told_once_the_daemon_serves(
    write_plugin: WritePlugin, may_read: asyncio.Event
) -> None:
    async with running_daemon(plugins=[write_plugin(LEDGER, "ledger")]) as ksi:
        await set_(ksi, 1)
        may_read.set()
        assert await tried("hear", 1) == [1]


async def test_its_effect_carries_the_cursor_and_the_cause(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(LEDGER, "ledger")]) as ksi:
        await set_(ksi, 1)
        await settled(ksi, "ledger.book")
        ((value, correlation, position),) = await ksi.daemon.database.read(
            "SELECT value, correlation, position FROM ledger, consumers WHERE name = 'ledger.book'"
        )
        (changed,) = ksi.events("state:changed")
        assert (value, correlation, position) == (1, changed.correlation_id, changed.seq)


async def test_one_that_raises_is_tried_again_and_then_left_as_a_dead_letter(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "var"
    plugin = write_plugin(LEDGER, "ledger")
    async with running_daemon(home=home, plugins=[plugin]) as ksi:
        module().broken.add("bad")
        await set_(ksi, 1, "bad", 2)
        assert await tried("book", 5) == [1, "bad", "bad", "bad", 2]
        await settled(ksi, "ledger.book")
        assert await booked(ksi) == [1, 2]
        (letter,) = (await ksi.call_raw("deadletter:list"))["letters"]
        assert (letter["origin"], letter["name"], letter["attempts"]) == ("subscriber", "ledger.book", 3)
        assert (letter["reason"], letter["message"]) == ("FAILED_PRECONDITION", "bad is no number")
        # Once it is mended the letter is tried again, and done once.
        module().broken.clear()
        assert (await ksi.call_raw("deadletter:redrive", {"ids": [letter["id"]]}))["redriven"] == [1]
        assert (await tried("book", 6))[5] == "bad"

        async def is_booked() -> bool:
            return await booked(ksi) == [1, 2, "bad"]

        await eventually(is_booked, patience_s=PATIENCE_S)
        assert (await ksi.call_raw("deadletter:redrive", {"ids": [1]}))["already"] == [1]
    async with running_daemon(home=home, plugins=[plugin]) as ksi:
        await set_(ksi, 3)
        assert await tried("book", 1) == [3]


@pytest.mark.parametrize(
    ("said", "told"),
    [("a" * 1024 * 1024, "a" * MAX_MESSAGE), ("no file h\udce9.txt", "no file h?.txt")],
    ids=["long", "no text"],
)
async def test_whatever_it_says_when_it_raises_its_event_becomes_a_dead_letter(
    write_plugin: WritePlugin, said: str, told: str
) -> None:
    source = LEDGER.replace('f"{change.value} is no number"', repr(said))
    assert source != LEDGER
    async with running_daemon(plugins=[write_plugin(source, "ledger")]) as ksi:
        module().broken.add("bad")
        await set_(ksi, "bad", 1)
        assert await tried("book", 4) == ["bad", "bad", "bad", 1]
        await settled(ksi, "ledger.book")
        (letter,) = (await ksi.call_raw("deadletter:list"))["letters"]
        assert letter["message"] == told


async def test_attempts_are_counted_over_restarts(write_plugin: WritePlugin, tmp_path: Path) -> None:
    home = tmp_path / "home" / "var"
    patient = LEDGER.replace("retry_s=0.01", "retry_s=3600")
    async with running_daemon(home=home, plugins=[write_plugin(patient, "ledger")]) as ksi:
        module().broken.add("bad")
        await set_(ksi, "bad")
        await tried("book", 1)

        async def is_noted() -> bool:
            rows = await ksi.daemon.database.read("SELECT attempts FROM consumer_events")
            return [row[0] for row in rows] == [1]

        await eventually(is_noted, patience_s=PATIENCE_S)
        await ksi.daemon.database.write_apart(
            lambda tx: tx.execute("UPDATE consumer_events SET due = 1").rowcount
        )
    eager = LEDGER.replace("broken: set[object] = set()", 'broken: set[object] = {"bad"}')
    async with running_daemon(home=home, plugins=[write_plugin(eager, "ledger")]) as ksi:
        await set_(ksi, 1)
        assert await tried("book", 3) == ["bad", "bad", 1]
        assert [told["attempts"] for told in ksi.emitted("deadletter:added")] == [3]


@asynccontextmanager
async def begun_anew(home: Path, write_plugin: WritePlugin, *values: Any) -> AsyncIterator[RunningDaemon]:
    """Have "bad" become a letter, delete the subscriber, and redrive while it tries its first event again."""
    async with running_daemon(home=home, plugins=[write_plugin(LEDGER, "ledger")]) as ksi:
        module().broken.add("bad")
        await set_(ksi, *values)
        await tried("book", len(values) + 2)
        await settled(ksi, "ledger.book")
    (home.parent / "plugins" / "ledger.py").unlink()
    async with running_daemon(home=home) as ksi:
        await ksi.call_raw("event:consumer_delete", {"kind": "subscriber", "name": "ledger.book"})
    closed = LEDGER.replace("gate.set()", "")
    async with running_daemon(home=home, plugins=[write_plugin(closed, "ledger")]) as ksi:
        await ksi.daemon.database.write_apart(lambda tx: tx.execute("DELETE FROM ledger").rowcount)
        await tried("book", 1)
        (letter,) = (await ksi.call_raw("deadletter:list"))["letters"]
        await ksi.call_raw("deadletter:redrive", {"ids": [letter["id"]]})
        module().gate.set()
        yield ksi


async def test_a_letter_that_is_redriven_before_its_event_comes_skips_none_of_the_others(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    """The subscriber was deleted, and begins anew; what it has before it is more than it holds at once."""
    home, large = tmp_path / "home" / "var", [str(n) * 900_000 for n in range(9)] + ["x" * 900_000] * 3
    async with begun_anew(home, write_plugin, 1, *large, "bad") as ksi:
        await settled(ksi, "ledger.book")
        assert [str(value)[:3] for value in await booked(ksi)] == [
            str(value)[:3] for value in (1, *large, "bad")
        ]
        assert await ksi.daemon.database.read("SELECT * FROM consumer_events") == []


async def test_a_letter_that_is_redriven_while_its_event_is_tried_is_tried_after_that(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "var"
    async with begun_anew(home, write_plugin, "bad"):
        assert await tried("book", 2) == ["bad", "bad"]


async def test_a_letter_that_was_being_tried_when_the_daemon_ended_is_tried_by_the_next(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "var"
    async with running_daemon(home=home, plugins=[write_plugin(LEDGER, "ledger")]) as ksi:
        module().broken.add("bad")
        await set_(ksi, "bad", 1)
        await settled(ksi, "ledger.book")
        module().gate.clear()
        (letter,) = (await ksi.call_raw("deadletter:list"))["letters"]
        await ksi.call_raw("deadletter:redrive", {"ids": [letter["id"]]})
        assert await tried("book", 5) == ["bad", "bad", "bad", 1, "bad"]
    async with running_daemon(home=home, plugins=[write_plugin(LEDGER, "ledger")]) as ksi:
        assert await tried("book", 1) == ["bad"]
        await set_(ksi, 2)
        await settled(ksi, "ledger.book")
        assert await booked(ksi) == [1, "bad", 2]


async def test_a_clock_that_was_set_back_keeps_no_event_from_its_next_attempt(
    write_plugin: WritePlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "var"
    async with running_daemon(home=home, plugins=[write_plugin(LEDGER, "ledger")]) as ksi:
        module().broken.add("bad")
        module().gate.clear()
        await set_(ksi, "bad")
        await tried("book", 1)
        ((consumer, seq),) = await ksi.daemon.database.read(
            "SELECT c.id, (SELECT max(seq) FROM log) FROM consumers c WHERE name = 'ledger.book'"
        )
        failures = Failures(attempts=1, due_us=2 * ksi.daemon.clock.time_us())
        await ksi.daemon.database.write_apart(lambda tx: rows.fail(tx, consumer, seq, failures))
    monkeypatch.setattr(durable_listener, "MAX_DELAY_S", 0.01)
    async with running_daemon(home=home, plugins=[write_plugin(LEDGER, "ledger")]) as ksi:
        assert await tried("book", 1) == ["bad"]


async def test_what_it_raises_after_its_effect_changes_nothing(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    settings = {"strict": False}
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(LEDGER, "ledger")], settings=settings) as ksi:
            await set_(ksi, 1, key="late")
            await set_(ksi, 2, key="twice")
            await set_(ksi, 3)
            assert await tried("book", 3) == [1, 2, 3]
            await settled(ksi, "ledger.book")
            assert await booked(ksi) == [1, 2, 3]
    errors = [line["error"] for line in log_file.lines("handler.crashed")]
    assert errors[0] == "ZeroDivisionError: after all was done"
    assert "writes a second time" in errors[1]


async def test_a_disk_that_takes_nothing_is_waited_for_and_is_no_attempt(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(LEDGER, "ledger")]) as ksi:
        module().gate.clear()
        await set_(ksi, 1)
        await tried("book", 1)
        writable(ksi.daemon.database, is_so=False)
        module().gate.set()
        assert await tried("book", 2) == [1, 1]
        writable(ksi.daemon.database, is_so=True)
        await settled(ksi, "ledger.book")
        assert await booked(ksi) == [1]
        assert ksi.emitted("deadletter:added") == []


HEARING = """
    import asyncio

    from ksi_common.events.state import Changed
    from ksi_daemon.plugin import subscriber

    heard, gate = asyncio.Event(), asyncio.Event()

    @subscriber(durable=True)
    async def hear(change: Changed) -> None:
        heard.set()
        await gate.wait()
"""


async def test_one_whose_cursor_cannot_be_stored_ends_with_a_daemon_that_breaks_off(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    async def is_deferred() -> bool:
        return bool(log_file.lines("subscriber.deferred"))

    async def break_off() -> None:
        async with running_daemon(plugins=[write_plugin(HEARING, "ledger")]) as ksi:
            await set_(ksi, 1)
            await module().heard.wait()
            writable(ksi.daemon.database, is_so=False)
            module().gate.set()
            await eventually(is_deferred, patience_s=PATIENCE_S)
            ksi.daemon.lifecycle.fail(OSError("the disk is gone"))
            await asyncio.Event().wait()

    with log_file.written(), pytest.raises(OSError, match="the disk is gone"):
        await break_off()
    assert log_file.lines("child.crashed") == []


async def test_what_is_never_stored_has_no_durable_subscriber(write_plugin: WritePlugin) -> None:
    source = """
        from ksi_daemon.plugin import Notification, subscriber

        class Passed(Notification, event="probe:passed", ephemeral=True):
            '''It passed by.'''

        @subscriber(durable=True)
        async def passing(passed: Passed) -> None:
            pass
    """
    async with running_daemon(plugins=[write_plugin(source)]) as ksi:
        found = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
    assert found["status"] == "refused"
    assert "passing is durable, but probe:passed is never stored" in found["error"]


async def test_a_subscriber_that_is_loaded_keeps_its_cursor(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "var"
    wish = {"name": "ledger.hear", "kind": "subscriber"}
    plugin = write_plugin(LEDGER, "ledger")
    async with running_daemon(home=home, plugins=[plugin]) as ksi, ksi.connect() as wire:
        await set_(ksi, 1)
        await settled(ksi, "ledger.hear")
        answer = await wire.call("event:consumer_delete", wish)
        assert answer["error"]["details"]["reason"] == "loaded"
    (home.parent / "plugins" / "ledger.py").unlink()
    async with running_daemon(home=home) as ksi:
        error = await ksi.call_error("event:consumer_delete", {"name": "ledger.hear"})
        assert (error.code, error.hint) == ("NOT_FOUND", "there is a subscriber: give kind=subscriber")
        assert (await ksi.call_raw("event:consumer_delete", wish))["status"] == "deleted"
