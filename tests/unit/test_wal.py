"""Every database under var/ is in WAL mode: what a crash leaves is what was committed."""

import sqlite3  # noqa: TID251 -- files of other modes are made here
from collections.abc import Sequence
from pathlib import Path

import pytest

from ksi_common.async_db import AsyncSQLiteDB
from ksi_daemon.database.migrations import migrate
from tests.support.databases import Heard, opened, put

_MAGIC = b"SQLite format 3\0"
_WAL = b"\x02\x02"


def databases_under(home: Path) -> Sequence[Path]:
    """List the SQLite files below a folder, by what they begin with; fail where one is not in WAL mode."""
    found = []
    for path in sorted(home.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                header = file.read(20)
            if header.startswith(_MAGIC):
                assert header[18:20] == _WAL, f"{path.relative_to(home)} is not in WAL mode"
                found.append(path)
    return found


async def test_the_one_database_is_in_wal_mode_from_its_first_byte(tmp_path: Path) -> None:
    async with opened(tmp_path, Heard()) as database:
        assert databases_under(tmp_path) == [database.path]
        await database.write(put(1))
        assert databases_under(tmp_path) == [database.path]
    assert databases_under(tmp_path) == [database.path]


async def test_a_database_of_a_plugin_is_in_wal_mode(tmp_path: Path) -> None:
    async with AsyncSQLiteDB(tmp_path / "own.db", migrations={1: "CREATE TABLE a (x);"}):
        assert databases_under(tmp_path) == [tmp_path / "own.db"]


async def test_a_database_in_another_mode_is_changed_when_it_is_opened(tmp_path: Path) -> None:
    made = sqlite3.connect(tmp_path / "old.db")
    made.execute("CREATE TABLE a (x)")
    made.close()
    async with AsyncSQLiteDB(tmp_path / "old.db"):
        pass
    assert len(databases_under(tmp_path)) == 1


def test_a_backup_before_a_migration_is_in_wal_mode(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    for newest in (1, 2):
        migrate(connection, "p", {1: "CREATE TABLE a (x);", newest: ""}, backups=tmp_path / "backups")
    connection.close()
    names = [path.name for path in databases_under(tmp_path)]
    assert names == ["a.db", "before-p-0002.db"]
    assert [path.name for path in (tmp_path / "backups").iterdir()] == ["before-p-0002.db"]


def test_a_database_in_another_mode_is_found(tmp_path: Path) -> None:
    made = sqlite3.connect(tmp_path / "bad.db")
    made.execute("CREATE TABLE a (x)")
    made.close()
    with pytest.raises(AssertionError, match=r"bad\.db is not in WAL mode"):
        databases_under(tmp_path)


def test_other_files_are_no_databases(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("SQLite format 3 is what this is not")
    assert databases_under(tmp_path) == []
