"""AsyncSQLiteDB opens files durably, migrates them, and keeps one transaction at a time whole."""

import asyncio
import shutil
import sqlite3  # noqa: TID251 -- what the class under test makes of its errors
import threading
from asyncio import TaskGroup
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from ksi_common.async_db import AsyncSQLiteDB, SchemaTooNew, sqlite_version, statements
from ksi_common.errors import FailedPrecondition

ITEMS = {1: "CREATE TABLE items (name TEXT PRIMARY KEY);"}


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[AsyncSQLiteDB]:
    async with AsyncSQLiteDB(tmp_path / "a.db", migrations=ITEMS) as opened:
        yield opened


async def names(db: AsyncSQLiteDB) -> list[str]:
    return [row["name"] for row in await db.fetch("SELECT name FROM items ORDER BY rowid")]


async def pragma(db: AsyncSQLiteDB, name: str) -> object:
    row = await db.fetch_one(f"PRAGMA {name}")
    assert row is not None
    return row[0]


@contextmanager
def busy(db: AsyncSQLiteDB, tasks: TaskGroup) -> Iterator[None]:
    """Hold up the thread of the connection: what is asked of it meanwhile waits in its queue."""
    gate = threading.Event()
    tasks.create_task(db.connection._execute(gate.wait, 5))  # type: ignore[no-untyped-call]  # it has none
    try:
        yield
    finally:
        gate.set()


async def turns(count: int) -> None:
    """Let the other tasks go on as far as they can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_file_is_opened_in_wal_mode_synchronous_full(db: AsyncSQLiteDB) -> None:
    assert await pragma(db, "journal_mode") == "wal"
    assert await pragma(db, "synchronous") == 2
    assert await pragma(db, "foreign_keys") == 1
    assert await pragma(db, "auto_vacuum") == 2


async def test_rows_are_read_by_name(db: AsyncSQLiteDB) -> None:
    assert await db.execute("INSERT INTO items VALUES (?), (:b)", ("a", "b")) == 2
    assert await names(db) == ["a", "b"]
    row = await db.fetch_one("SELECT name FROM items WHERE name = :name", {"name": "b"})
    assert row is not None
    assert row["name"] == "b"
    assert await db.fetch_one("SELECT name FROM items WHERE name = 'c'") is None


@pytest.mark.parametrize("name", ["a?b.db", "a#b.db", "a b%20.db", "ü.db"])
async def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    async with AsyncSQLiteDB(tmp_path / name, migrations=ITEMS):
        pass
    assert (tmp_path / name).exists()


async def test_a_closed_database_says_so(db: AsyncSQLiteDB) -> None:
    await db.close()
    await db.close()
    with pytest.raises(FailedPrecondition, match=r"database a\.db is not open"):
        await db.execute("SELECT 1")


async def test_nothing_can_be_written_where_it_is_opened_for_reading(db: AsyncSQLiteDB) -> None:
    async with AsyncSQLiteDB(db.path, read_only=True) as reader:
        await db.execute("INSERT INTO items VALUES ('a')")
        assert await names(reader) == ["a"]
        for sql in ("DELETE FROM items", "CREATE TABLE x (y)", "PRAGMA user_version = 9"):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                await reader.execute(sql)
        await reader.execute("PRAGMA query_only = OFF")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await reader.execute("DELETE FROM items")
    assert await names(db) == ["a"]


async def test_a_missing_file_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        async with AsyncSQLiteDB(tmp_path / "none.db", read_only=True):
            pass
    assert not (tmp_path / "none.db").exists()


async def test_a_transaction_commits_together(db: AsyncSQLiteDB) -> None:
    async with db.transaction() as inner:
        assert inner is db
        await db.execute("INSERT INTO items VALUES ('a')")
        await db.execute("INSERT INTO items VALUES ('b')")
    assert await names(db) == ["a", "b"]


async def test_a_transaction_that_raises_leaves_nothing(db: AsyncSQLiteDB) -> None:
    async def fail() -> None:
        async with db.transaction():
            await db.execute("INSERT INTO items VALUES ('a')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await names(db) == []


async def test_a_statement_that_fails_undoes_its_transaction(db: AsyncSQLiteDB) -> None:
    async def put_twice() -> None:
        async with db.transaction():
            await db.execute("INSERT INTO items VALUES ('a')")
            await db.execute("INSERT INTO items VALUES ('a')")

    with pytest.raises(sqlite3.IntegrityError):
        await put_twice()
    assert await names(db) == []


async def test_a_transaction_within_a_transaction_is_refused(db: AsyncSQLiteDB) -> None:
    async with db.transaction():
        await db.execute("INSERT INTO items VALUES ('a')")
        with pytest.raises(FailedPrecondition, match="has a transaction open already"):
            async with db.transaction():
                pass
    assert await names(db) == ["a"]


async def test_tasks_take_turns(db: AsyncSQLiteDB) -> None:
    async def put(name: str) -> None:
        async with db.transaction():
            await db.execute("INSERT INTO items VALUES (?)", (name,))
            await turns(3)
            await db.execute("INSERT INTO items VALUES (?)", (name * 2,))

    async with asyncio.timeout(5), TaskGroup() as tasks:
        for name in "abc":
            tasks.create_task(put(name))
    assert await names(db) == ["a", "aa", "b", "bb", "c", "cc"]


async def test_a_writer_elsewhere_is_waited_for_no_longer_than_the_busy_timeout(db: AsyncSQLiteDB) -> None:
    async with (
        AsyncSQLiteDB(db.path, busy_timeout_s=0) as other,
        db.transaction(),
    ):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            async with other.transaction():
                pass


@asynccontextmanager
async def cancelled_while_waiting(db: AsyncSQLiteDB, sql: str) -> AsyncIterator[None]:
    """Run a transaction that is cancelled while ``sql`` waits for the thread of the connection."""
    ready, go = asyncio.Event(), asyncio.Event()

    async def transact() -> None:
        if sql == "BEGIN":
            ready.set()
            await go.wait()
        async with db.transaction():
            await db.execute("INSERT INTO items VALUES ('a')")
            ready.set()
            await go.wait()
            if sql != "COMMIT":
                await db.execute(sql)

    async with asyncio.timeout(5), TaskGroup() as tasks:
        task = tasks.create_task(transact())
        await ready.wait()
        with busy(db, tasks):
            await turns(2)
            go.set()
            await turns(5)
            task.cancel()
            await turns(1)
            yield
    assert task.cancelled()


@pytest.mark.parametrize("sql", ["BEGIN", "INSERT INTO items VALUES ('b')", "COMMIT"])
async def test_a_transaction_may_be_cancelled_at_any_statement(db: AsyncSQLiteDB, sql: str) -> None:
    async with cancelled_while_waiting(db, sql):
        pass
    assert await names(db) in ([], ["a"])
    async with db.transaction():
        await db.execute("INSERT INTO items VALUES ('after')")
    assert (await names(db))[-1] == "after"


async def test_a_transaction_that_is_cancelled_holds_no_lock(db: AsyncSQLiteDB) -> None:
    async with cancelled_while_waiting(db, "BEGIN"):
        pass
    async with AsyncSQLiteDB(db.path, busy_timeout_s=0) as other, other.transaction():
        await other.execute("INSERT INTO items VALUES ('b')")
    assert await names(db) == ["b"]


async def test_migrations_run_once_each_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    second = {2: "INSERT INTO items VALUES ('two');", **ITEMS}
    for migrations in (ITEMS, ITEMS, second, second):
        async with AsyncSQLiteDB(path, migrations=migrations) as db:
            assert await pragma(db, "user_version") == max(migrations)
    async with AsyncSQLiteDB(path) as db:
        assert await names(db) == ["two"]


async def test_a_migration_that_fails_leaves_those_before_it_and_nothing_of_itself(tmp_path: Path) -> None:
    bad = {**ITEMS, 2: "INSERT INTO items VALUES ('two');\nINSERT INTO missing VALUES (1);"}
    with pytest.raises(sqlite3.OperationalError, match="missing"):
        async with AsyncSQLiteDB(tmp_path / "a.db", migrations=bad):
            pass
    async with AsyncSQLiteDB(tmp_path / "a.db", migrations=ITEMS) as db:
        assert await pragma(db, "user_version") == 1
        assert await names(db) == []


def left_by_a_crash(tmp_path: Path, version: int) -> Path:
    """Make a database whose last commit is in its WAL only, as a killed process leaves it."""
    source, path = tmp_path / "source.db", tmp_path / "killed.db"
    connection = sqlite3.connect(source, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE later (x)")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute(f"PRAGMA user_version = {version}")
    shutil.copy(source, path)
    shutil.copy(f"{source}-wal", f"{path}-wal")
    connection.close()
    return path


def in_rollback_mode(tmp_path: Path, version: int) -> Path:
    path = tmp_path / "rollback.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE later (x)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    return path


@pytest.mark.parametrize("make", [left_by_a_crash, in_rollback_mode])
async def test_a_file_of_a_newer_version_is_refused_and_not_one_byte_is_changed(
    tmp_path: Path, make: object
) -> None:
    assert callable(make)
    path: Path = make(tmp_path, 2)
    files = [path, Path(f"{path}-wal")]
    before = [file.read_bytes() for file in files if file.exists()]
    with pytest.raises(SchemaTooNew, match="has schema 2; this version knows 1") as refused:
        async with AsyncSQLiteDB(path, migrations=ITEMS):
            pass
    assert refused.value.details["reason"] == "newer_schema"
    assert [file.read_bytes() for file in files if file.exists() and file.stat().st_size] == before


async def test_a_crashed_file_of_this_version_is_opened(tmp_path: Path) -> None:
    async with AsyncSQLiteDB(left_by_a_crash(tmp_path, 1), migrations={1: ""}) as db:
        assert await pragma(db, "user_version") == 1


def test_a_script_is_cut_into_statements() -> None:
    script = """
-- the first; with a semicolon
CREATE TABLE a (
    x TEXT DEFAULT ';'  -- and another;
);
CREATE TRIGGER t AFTER INSERT ON a BEGIN
    DELETE FROM a; DELETE FROM a;
END;
-- the end
"""
    first, second = statements(script)
    assert first.endswith(");")
    assert second.startswith("CREATE TRIGGER")
    assert second.endswith("END;")


def test_a_script_that_ends_within_a_statement_is_refused() -> None:
    with pytest.raises(ValueError, match="statement: 'SELECT 1' has no final semicolon"):
        list(statements("SELECT 0;\nSELECT 1"))


def test_an_empty_script_has_no_statements() -> None:
    assert list(statements("\n-- nothing\n")) == []


def test_the_version_of_sqlite_is_known() -> None:
    assert sqlite_version() == sqlite3.sqlite_version
