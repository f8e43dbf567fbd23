"""The database as handlers have it: what was awaited is on disk, and was told before."""

import asyncio
import os
import sqlite3  # noqa: TID251 -- readers raise its errors
import stat
from asyncio import TaskGroup
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ksi_common.async_db import SchemaTooNew
from ksi_common.clock import SystemClock
from ksi_common.envelope import StoredEvent, event_context
from ksi_common.errors import FailedPrecondition, InternalError, ResourceExhausted, Unavailable
from ksi_common.messages import Message, Request
from ksi_daemon.database import Database, Transaction, core
from ksi_daemon.database.errors import StoreUnavailable, UnitInterrupted
from ksi_daemon.database.migrations import CORE, migrate, scripts
from tests.support.databases import (
    Heard,
    envelope,
    fill_the_disk,
    group,
    interrupt_itself,
    opened,
    put,
    rows,
    tell,
)


class Done(Message):
    pass


class Ask(Request[Done], event="demo:ask"):
    n: int


async def things(database: Database) -> list[object]:
    return [row["x"] for row in await database.read("SELECT x FROM things ORDER BY rowid")]


async def pragma(database: Database, name: str) -> object:
    def unit(tx: Transaction) -> object:
        return tx.execute(f"PRAGMA {name}").fetchone()[0]

    return await database.write(unit)


async def test_what_was_awaited_is_on_disk(database: Database) -> None:
    assert await database.write(put("a")) == "a"
    assert rows(database.path, "SELECT x FROM things") == [("a",)]


async def test_the_file_is_in_wal_mode_synchronous_full_and_its_owners_alone(database: Database) -> None:
    assert await pragma(database, "journal_mode") == "wal"
    assert await pragma(database, "synchronous") == 2
    assert await pragma(database, "foreign_keys") == 1
    assert await pragma(database, "auto_vacuum") == 2
    assert await pragma(database, "wal_autocheckpoint") == 0
    assert stat.S_IMODE(database.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(database.path.parent.stat().st_mode) == 0o700


async def test_writes_of_one_turn_are_one_commit(database: Database, heard: Heard) -> None:
    results = await group(database, *[put(n) for n in range(20)])
    assert results == list(range(20))
    assert database.statistics.groups == 1
    assert database.statistics.units == 20
    assert heard.heads == [0]


async def test_nobody_waits_for_the_writer_once_it_is_done(database: Database) -> None:
    await group(database, put(1), put(2))
    assert database.statistics.waiting == 0


async def test_callbacks_come_first_then_subscribers_then_those_who_waited(tmp_path: Path) -> None:
    order: list[str] = []

    def unit(name: str) -> Any:
        def run(tx: Transaction) -> None:
            tell(name)(tx)
            tx.on_commit(lambda: order.append(f"callback {name}1"))
            tx.on_commit(lambda: order.append(f"callback {name}2"))

        return run

    def published(events: Sequence[StoredEvent], head: int) -> None:
        order.append(f"told {','.join(event.event_id for event in events)} at {head}")

    async def write(database: Database, name: str) -> None:
        await database.write(unit(name))
        order.append(f"awaited {name}")

    async with opened(tmp_path, Heard(), published=published) as database, TaskGroup() as tasks:
        for name in "ab":
            tasks.create_task(write(database, name))
    assert order == [
        "callback a1",
        "callback a2",
        "callback b1",
        "callback b2",
        "told a,b at 2",
        "awaited a",
        "awaited b",
    ]


@pytest.mark.parametrize("guilty", [fill_the_disk, interrupt_itself])
async def test_innocent_units_of_a_group_are_committed_and_told_in_order(
    database: Database, heard: Heard, guilty: Any
) -> None:
    called: list[str] = []

    def unit(name: str, then: Any = None) -> Any:
        def run(tx: Transaction) -> str:
            tx.on_commit(lambda: called.append(name))
            put(name)(tx)
            tell(name)(tx)
            if then is not None:
                then(tx)
            return name

        return run

    await database.write(tell("before"))
    units = [unit("a"), unit("b"), unit("guilty", guilty), unit("c"), unit("failing", put("a")), unit("d")]
    results = await group(database, *units)
    assert [results[n] for n in (0, 1, 3, 5)] == ["a", "b", "c", "d"]
    assert type(results[2]) is (StoreUnavailable if guilty is fill_the_disk else UnitInterrupted)
    assert type(results[4]) is sqlite3.IntegrityError
    assert called == ["a", "b", "c", "d"]
    assert heard.ids == ["before", "a", "b", "c", "d"]
    assert heard.seqs == [1, 2, 3, 4, 5]
    assert heard.heads[-1] == 5
    assert await things(database) == ["a", "b", "c", "d"]
    log = rows(database.path, "SELECT seq, event_id FROM log ORDER BY seq")
    assert log == list(zip(heard.seqs, heard.ids, strict=True))


class Strange(BaseException):
    pass


@pytest.mark.parametrize(
    "kind",
    [StopIteration, asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit, Strange],
)
async def test_what_a_future_cannot_carry_becomes_an_internal_error(
    database: Database, kind: type[BaseException]
) -> None:
    def unit(tx: Transaction) -> None:
        raise kind

    failed, stored = await group(database, unit, put("a"))
    assert type(failed) is InternalError
    assert failed.message == f"a unit of work raised {kind.__name__}"
    assert type(failed.__cause__) is kind
    assert stored == "a"


@pytest.mark.parametrize("kind", [ValueError, StopAsyncIteration, TimeoutError, InternalError])
async def test_other_errors_arrive_as_they_are(database: Database, kind: type[Exception]) -> None:
    def unit(tx: Transaction) -> None:
        raise kind

    with pytest.raises(kind):
        await database.write(unit)


@pytest.fixture
def reported() -> list[str]:
    """Collect what the loop was told of callbacks that raised."""
    return []


async def test_a_callback_that_raises_harms_nobody_and_is_reported(
    database: Database, heard: Heard, reported: list[str]
) -> None:
    called: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError

    def unit(tx: Transaction) -> str:
        tx.on_commit(fail)
        tx.on_commit(lambda: called.append("same unit"))
        return "a"

    def other(tx: Transaction) -> str:
        tx.on_commit(lambda: called.append("other unit"))
        tell("told")(tx)
        return "b"

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(repr(context.get("exception"))))
    assert await group(database, unit, other) == ["a", "b"]
    assert called == ["same unit", "other unit"]
    assert heard.ids == ["told"]
    assert reported == ["ZeroDivisionError()"]


async def test_of_several_callbacks_that_raise_each_is_reported(
    database: Database, reported: list[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    def unit(tx: Transaction) -> str:
        tx.on_commit(fail)
        tx.on_commit(fail)
        return "a"

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(repr(context.get("exception"))))
    assert await group(database, unit) == ["a"]
    assert reported == ["ExceptionGroup('several raised', [ZeroDivisionError(), ZeroDivisionError()])"]


async def test_a_publisher_that_raises_keeps_no_answer_back(tmp_path: Path, reported: list[str]) -> None:
    def published(events: Sequence[StoredEvent], head: int) -> None:
        raise ValueError("bad subscriber")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(repr(context.get("exception"))))
    async with opened(tmp_path, Heard(), published=published) as database:
        assert await group(database, put("a")) == ["a"]
    assert reported == ["ValueError('bad subscriber')"]


async def test_cancelling_an_awaited_write_does_not_take_it_back(database: Database, heard: Heard) -> None:
    async def write() -> None:
        await database.write(tell("a"))

    async with asyncio.timeout(30), TaskGroup() as tasks:
        task = tasks.create_task(write())
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    await database.write(tell("b"))
    assert heard.ids == ["a", "b"]
    assert database.statistics.waiting == 0


async def test_leaving_writes_what_was_asked_for(tmp_path: Path, heard: Heard) -> None:
    async with opened(tmp_path, heard) as database:
        futures = [database.write(tell(str(n))) for n in range(1000)]
    assert all(future.done() for future in futures)
    assert heard.seqs == list(range(1, 1001))
    assert rows(database.path, "SELECT count(*), max(seq) FROM log") == [(1000, 1000)]


async def test_writing_after_the_end_is_refused_rather_than_forgotten(tmp_path: Path, heard: Heard) -> None:
    late: list[object] = []

    async def write_again(database: Database) -> None:
        await database.write(put(1))
        try:
            await database.write(put(2))
        except Unavailable as error:
            late.append(error.details["reason"])

    async with (
        asyncio.timeout(30),
        TaskGroup() as tasks,
        opened(tmp_path, heard) as database,
    ):
        tasks.create_task(write_again(database))
        await asyncio.sleep(0)
    assert late == ["closed"]


async def test_leaving_without_having_started_leaves_a_file_that_can_be_opened(tmp_path: Path) -> None:
    for _ in range(2):
        database = Database(
            tmp_path / "ksi.db",
            backups=tmp_path,
            clock=SystemClock(),
            published=Heard().publish,
            failed=lambda error: None,
        )
        async with database:
            assert database.head == 0


async def test_too_many_waiting_units_are_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "MAX_WAITING", 3)
    futures = [database.write(put(n)) for n in range(3)]
    assert database.statistics.waiting == 3
    with pytest.raises(ResourceExhausted, match="3 units wait for the disk") as refused:
        database.write(put(9))
    assert refused.value.details == {"reason": "writer_full", "retry_after_s": 1}
    await asyncio.wait(futures)
    assert await database.write(put(9)) == 9


async def test_readers_cannot_write(database: Database) -> None:
    for sql in ("DELETE FROM log", "CREATE TABLE x (y)", "INSERT INTO things VALUES (1)"):
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await database.read(sql)


async def test_a_reader_sees_what_is_committed_and_no_more(database: Database) -> None:
    await database.write(put("a"))
    async with database.reader() as reader:
        assert [row["x"] for row in await reader.fetch("SELECT x FROM things")] == ["a"]
        await database.write(put("b"))
        assert [row["x"] for row in await reader.fetch("SELECT x FROM things")] == ["a", "b"]


async def test_readers_are_shared_and_waited_for(database: Database) -> None:
    async with asyncio.timeout(30), TaskGroup() as tasks:  # noqa: SIM117 -- it outlives the readers
        async with database.reader() as one, database.reader() as other:
            assert one is not other
            waiting = tasks.create_task(database.read("SELECT 1 AS x"))
            await asyncio.sleep(0)
            assert not waiting.done()
    assert waiting.result()[0]["x"] == 1


async def test_a_reader_comes_back_from_a_query_that_failed_or_was_cancelled(database: Database) -> None:
    for _ in range(core.READERS + 1):
        with pytest.raises(sqlite3.OperationalError, match="missing"):
            await database.read("SELECT * FROM missing")
        async with TaskGroup() as tasks:
            task = tasks.create_task(database.read("SELECT 1"))
            await asyncio.sleep(0)
            task.cancel()
    assert len(await database.read("SELECT 1")) == 1


async def test_a_log_keeps_its_id_and_two_logs_have_two(tmp_path: Path) -> None:
    ids = []
    for folder in ("a", "a", "b"):
        async with opened(tmp_path / folder, Heard()) as database:
            ids.append(database.log_id)
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].isalnum()


async def test_the_head_is_known_at_the_start(tmp_path: Path) -> None:
    for head in (0, 2):
        async with opened(tmp_path, Heard()) as database:
            assert database.head == database.statistics.head == head
            await group(database, tell(), tell())


async def test_schemas_change_before_the_start_only(database: Database) -> None:
    with pytest.raises(FailedPrecondition, match="before the daemon serves"):
        database.migrate("late", {1: "CREATE TABLE late (x);"})


def put_back(files: Mapping[Path, bytes]) -> None:
    for file, content in files.items():
        file.write_bytes(content)
        Path(f"{file}-shm").unlink(missing_ok=True)


async def test_a_core_of_a_newer_version_is_refused_and_not_one_byte_is_changed(tmp_path: Path) -> None:
    async with opened(tmp_path, Heard()) as database:
        await database.write(lambda tx: tx.execute("UPDATE schema_versions SET version = version + 1000"))
        files = sorted(database.path.parent.iterdir())
        # As a killed daemon leaves them: what was committed is in the WAL only.
        left = {file: file.read_bytes() for file in files if not file.name.endswith("-shm")}
    put_back(left)
    with pytest.raises(SchemaTooNew, match="has schema 100"):
        async with opened(tmp_path, Heard()):
            pass
    assert {file: file.read_bytes() for file in left} == left
    assert rows(database.path, "SELECT min(version) > 1000 FROM schema_versions") == [(1,)]


async def test_a_migration_of_the_core_that_cannot_be_made_lets_go_of_the_file(tmp_path: Path) -> None:
    left_by_the_first_version(tmp_path / "db" / "ksi.db")
    (tmp_path / "backups").touch()
    with pytest.raises(FileExistsError):
        async with opened(tmp_path, Heard()):
            pass
    (tmp_path / "backups").unlink()
    async with opened(tmp_path, Heard()) as database:
        await database.write(put(1))


def left_by_the_first_version(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path, isolation_level=None)
    first = {1: scripts("ksi_daemon.database")[1]}
    migrate(connection, CORE, first, backups=path.parent)
    connection.close()


def test_after_the_loop_nobody_is_left_to_be_told(tmp_path: Path, heard: Heard) -> None:
    async def use() -> Database:
        async with opened(tmp_path, heard) as database:
            return database

    asyncio.run(use())._deliver([], 7)
    assert heard.heads == []


async def test_the_row_of_a_request_joins_its_unit(database: Database, heard: Heard) -> None:
    with event_context(envelope()) as request:
        await database.write(tell("told"))
    assert request.recorded
    log = rows(database.path, "SELECT event_id, kind, name, causation_id, hop FROM log ORDER BY seq")
    assert log == [("request-1", 1, "demo:ask", None, 0), ("told", 0, "demo:told", "request-1", 1)]
    assert heard.ids == ["told"]


async def test_a_request_has_one_unit(database: Database) -> None:
    with event_context(envelope()):
        await database.write(put(1))
        with pytest.raises(InternalError, match="the handler of demo:ask writes a second time"):
            database.write(put(2))


async def test_a_unit_that_failed_was_none(database: Database) -> None:
    with event_context(envelope()) as request:
        with pytest.raises(ZeroDivisionError):
            await database.write(lambda _: 1 / 0)
        assert not request.recorded
        await database.write(tell("second"))
    log = rows(database.path, "SELECT event_id FROM log ORDER BY seq")
    assert log == [("request-1",), ("second",)]


async def test_a_unit_that_was_refused_was_none(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with event_context(envelope()) as request:
        with monkeypatch.context() as full:
            full.setattr(core, "MAX_WAITING", 0)
            with pytest.raises(ResourceExhausted):
                await database.write(tell("first"))
        assert not request.recorded
        await database.write(tell("second"))
    log = rows(database.path, "SELECT event_id FROM log ORDER BY seq")
    assert log == [("request-1",), ("second",)]


async def test_a_write_apart_is_no_part_of_the_request(database: Database) -> None:
    with event_context(envelope()) as request:
        await database.write_apart(tell("apart"))
        assert not request.recorded
        await database.write(tell("with it"))
    log = rows(database.path, "SELECT event_id, causation_id FROM log ORDER BY seq")
    assert log == [("apart", "request-1"), ("request-1", None), ("with it", "request-1")]


async def test_a_request_that_leaves_no_row_may_write_as_it_likes(database: Database) -> None:
    safe = envelope()
    safe.to_record = False
    with event_context(safe):
        await database.write(put(1))
        await database.write(tell("told"))
    assert rows(database.path, "SELECT event_id FROM log") == [("told",)]


@pytest.mark.parametrize("message", [None, Ask(n=1)])
async def test_a_request_whose_handler_wrote_nothing_is_recorded(
    database: Database, heard: Heard, message: Ask | None
) -> None:
    request = envelope(message=message)
    await database.record(request)
    ((data, digest),) = rows(database.path, "SELECT data, digest FROM log WHERE event_id = 'request-1'")
    assert data is None
    assert len(digest) == 32
    assert heard.ids == []
    assert heard.heads == [1]


async def test_the_row_of_a_request_goes_with_its_unit(database: Database) -> None:
    def twice(tx: Transaction) -> None:
        put(1)(tx)
        put(1)(tx)

    with event_context(envelope()), pytest.raises(sqlite3.IntegrityError):
        await database.write(twice)
    assert rows(database.path, "SELECT count(*) FROM log") == [(0,)]


async def test_what_cannot_be_opened_to_the_end_leaves_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "run").touch()  # where a folder is to be
    with pytest.raises(FileExistsError):
        async with opened(tmp_path, Heard()):
            pass
    descriptors = await asyncio.to_thread(os.listdir, "/proc/self/fd")
    assert [name for name in map(shown, descriptors) if name.startswith(str(tmp_path))] == []


def shown(descriptor: str) -> str:
    """Name the file of a descriptor, which may be closed by now."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except FileNotFoundError:
        return ""
