"""A unit that is nothing but an event stores what any unit would, and needs no transaction of its own."""

import sqlite3  # noqa: TID251 -- another program that writes
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ksi_common.envelope import current_envelope, event_context
from ksi_common.errors import AlreadyExists
from ksi_daemon.database import Database, Telling, Transaction, Unit, writer
from ksi_daemon.database.errors import StoreUnavailable
from ksi_daemon.database.log_writer import CLAIM_CHECKED
from ksi_daemon.database.writer import Job
from tests.support.databases import Bench, Heard, bench, envelope, nobody, put, rows

Given = tuple[int | None, bool]
FACTS = "SELECT kind, name, stream, version, correlation_id, causation_id, actor, hop, data FROM log"


def telling(data: bytes = b'{"n":1}', **rest: Any) -> Telling[Given]:
    return Telling("demo:told", data, lambda told, known: (told.seq, known), **rest)


def any_unit(**rest: Any) -> Unit[Given]:
    """Make the same of plain calls."""

    def unit(tx: Transaction) -> Given:
        told = tx.tell_raw("demo:told", b'{"n":1}', cause=False, **rest)
        return told.seq, told not in tx.told

    return unit


async def write(
    database: Database, unit: Unit[Given], event_id: str, *, recorded: bool = False, **facts: Any
) -> Given:
    asked = envelope(event_id=event_id, **facts)
    asked.to_record = recorded
    with event_context(asked):
        return await database.write(unit)


async def test_it_stores_and_tells_what_any_unit_would(database: Database, heard: Heard) -> None:
    cause: dict[str, Any] = {"causation_id": "e0", "hop": 3, "actor": "agent-7", "traceparent": None}
    assert await write(database, any_unit(), "r1", **cause) == (1, False)
    assert await write(database, telling(), "r2", **cause) == (2, False)
    first, second = rows(database.path, FACTS)
    assert first == second
    assert rows(database.path, "SELECT event_id FROM log ORDER BY seq") == [("r1",), ("r2",)]
    assert [(told.event_id, told.seq) for told in heard.events] == [("r1", 1), ("r2", 2)]


async def test_it_needs_no_transaction(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Transaction] = []

    class Counted(Transaction):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self)

    monkeypatch.setattr(writer, "Transaction", Counted)
    assert await write(database, telling(), "r1") == (1, False)
    assert not made
    assert await write(database, any_unit(), "r2") == (2, False)
    assert len(made) == 1


async def test_an_id_from_outside_is_stored_once(database: Database, heard: Heard) -> None:
    assert await write(database, telling(event_id="own"), "r1") == (1, False)
    assert await write(database, telling(event_id="own"), "r2") == (1, True)
    with pytest.raises(AlreadyExists):
        await write(database, telling(b'{"n":2}', event_id="own"), "r3")
    assert [told.event_id for told in heard.events] == ["own"]


async def test_events_of_a_stream_have_versions(database: Database) -> None:
    for version in (1, 2):
        await write(database, telling(stream="s/1"), f"r{version}")
    assert rows(database.path, "SELECT stream, version FROM log ORDER BY seq") == [("s/1", 1), ("s/1", 2)]


async def test_large_data_is_in_a_blob(database: Database) -> None:
    await write(database, telling(b'"%b"' % (b"x" * CLAIM_CHECKED)), "r1")
    ((data, reference),) = rows(database.path, "SELECT data, reference FROM log")
    assert (data, bool(reference)) == (None, True)


async def test_where_its_reply_cannot_be_made_it_leaves_no_trace(database: Database, heard: Heard) -> None:
    def broken(*_: object) -> Given:
        raise ValueError("no reply")

    with pytest.raises(ValueError, match="no reply"):
        await write(database, Telling("demo:told", b"{}", broken), "r1")
    assert await write(database, telling(), "r2") == (1, False)
    assert rows(database.path, "SELECT seq, event_id FROM log") == [(1, "r2")]
    assert [told.event_id for told in heard.events] == ["r2"]


async def test_what_its_reply_logs_is_of_its_own_request(database: Database) -> None:
    def reply(*_: object) -> Given:
        current = current_envelope()
        assert current is not None
        worked_for.append(current.event_id)
        return None, False

    worked_for: list[str] = []
    await write(database, any_unit(), "r1")
    await write(database, Telling("demo:told", b"{}", reply), "r2")
    assert worked_for == ["r2"]


async def test_what_nobody_asked_for_is_told_too(database: Database) -> None:
    assert await database.write(telling()) == (1, False)
    assert rows(database.path, "SELECT actor, causation_id FROM log") == [("system", None)]


async def test_a_request_with_a_row_of_its_own_causes_it(database: Database) -> None:
    assert await write(database, telling(), "r1", recorded=True, hop=3) == (2, False)
    asked, told = rows(database.path, "SELECT event_id, kind, causation_id, hop FROM log ORDER BY seq")
    assert asked == ("r1", 1, None, 3)
    assert told[0] != "r1"
    assert told[1:] == (0, "r1", 4)


async def test_apart_from_such_a_request_it_is_caused_by_it_too(database: Database) -> None:
    asked = envelope(event_id="r1")
    asked.to_record = True
    with event_context(asked):
        assert await database.write_apart(telling()) == (1, False)
        await database.write(lambda _: None)
    told, row = rows(database.path, "SELECT event_id, kind, causation_id FROM log ORDER BY seq")
    assert row == ("r1", 1, None)
    assert (told[0] != "r1", *told[1:]) == (True, 0, "r1")


def told(desk: Bench, *jobs: tuple[Unit[Any], str]) -> Sequence[Job]:
    """Have units run as one group, each for a request that leaves no row; give their jobs."""
    group = [Job(unit, envelope(event_id=ident), None, nobody) for unit, ident in jobs]
    for job in group:
        assert job.envelope is not None
        job.envelope.to_record = False
    desk.writer.submit(group)
    return desk.done.get(timeout=30)[0]


def test_while_another_holds_the_database_all_are_refused_and_no_number_is_lost(tmp_path: Path) -> None:
    with bench(tmp_path) as desk, closing(sqlite3.connect(tmp_path / "ksi.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        alone = told(desk, (telling(), "r1"), (telling(), "r2"))
        mixed = told(desk, (telling(), "r3"), (put(1), "r4"))
        assert {type(job.error) for job in (*alone, *mixed)} == {StoreUnavailable}
        assert not any(job.told for job in (*alone, *mixed))
        other.rollback()
        assert told(desk, (telling(), "r5"))[0].value == (1, False)


def test_an_id_that_is_taken_is_no_fault_of_those_beside_it(tmp_path: Path) -> None:
    with bench(tmp_path) as desk:
        first, second = told(desk, (telling(), "r1"), (telling(), "r1"))
        assert (first.value, type(second.error)) == ((1, False), sqlite3.IntegrityError)
        assert told(desk, (telling(), "r2"))[0].value == (2, False)
