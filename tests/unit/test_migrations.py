"""Schemas go forwards, whole or not at all, and the database as it was is kept."""

import os
import signal
import sqlite3  # noqa: TID251 -- migrations are given a connection
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ksi_common.async_db import SchemaTooNew
from ksi_daemon.database.migrations import CORE, migrate, refuse_newer, scripts, version_of
from tests.support.databases import rows

FIRST: Mapping[int, str] = {1: "CREATE TABLE a (x);\nINSERT INTO a VALUES (1);"}
SECOND: Mapping[int, str] = {**FIRST, 2: "ALTER TABLE a ADD COLUMN y;\nINSERT INTO a VALUES (2, 2);"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(path, isolation_level=None)
    made.execute("PRAGMA journal_mode = WAL")
    yield made
    made.close()


def tables(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [name for (name,) in found]


def test_scripts_are_applied_once_and_counted(connection: sqlite3.Connection, tmp_path: Path) -> None:
    counts = [
        migrate(connection, "p", migrations, backups=tmp_path) for migrations in (FIRST, SECOND, SECOND)
    ]
    assert counts == [1, 1, 0]
    assert connection.execute("SELECT x, y FROM a").fetchall() == [(1, None), (2, 2)]
    assert version_of(connection, "p") == 2


def test_scripts_are_applied_in_the_order_of_their_numbers(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    assert migrate(connection, "p", {2: SECOND[2], 1: SECOND[1]}, backups=tmp_path) == 2


def test_numbers_may_have_gaps(connection: sqlite3.Connection, tmp_path: Path) -> None:
    migrate(connection, "p", {3: "CREATE TABLE a (x);"}, backups=tmp_path)
    migrate(connection, "p", {3: "", 10: "CREATE TABLE b (x);"}, backups=tmp_path)
    assert version_of(connection, "p") == 10


def test_components_have_versions_of_their_own(connection: sqlite3.Connection, tmp_path: Path) -> None:
    migrate(connection, "p", FIRST, backups=tmp_path)
    migrate(connection, "q", {1: "CREATE TABLE b (x);"}, backups=tmp_path)
    assert [version_of(connection, name) for name in ("p", "q", "r")] == [1, 1, 0]


def test_a_component_without_scripts_needs_nothing(connection: sqlite3.Connection, tmp_path: Path) -> None:
    assert migrate(connection, "p", {}, backups=tmp_path) == 0
    assert tables(connection) == []


def test_the_database_as_it_was_is_kept(connection: sqlite3.Connection, tmp_path: Path) -> None:
    backups = tmp_path / "deep" / "backups"
    migrate(connection, "p", FIRST, backups=backups)
    assert not backups.exists()
    migrate(connection, "p", SECOND, backups=backups)
    (backup,) = backups.iterdir()
    assert backup.name == "before-p-0002.db"
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert rows(backup, "SELECT * FROM a") == [(1,)]
    assert rows(backup, "SELECT * FROM schema_versions") == [("p", 1)]


def test_a_backup_that_was_cut_short_is_made_again(connection: sqlite3.Connection, tmp_path: Path) -> None:
    migrate(connection, "p", FIRST, backups=tmp_path)
    (tmp_path / "before-p-0002.db").write_bytes(b"half of it")
    migrate(connection, "p", SECOND, backups=tmp_path)
    assert rows(tmp_path / "before-p-0002.db", "SELECT * FROM a") == [(1,)]


def test_without_room_for_the_backup_nothing_is_changed(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    migrate(connection, "p", FIRST, backups=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file"):
        migrate(connection, "p", SECOND, backups=tmp_path / "file")
    assert version_of(connection, "p") == 1


@pytest.mark.parametrize("bad", ["INSERT INTO missing VALUES (1);", "SELEKT;", "SELECT 1"])
def test_a_script_that_fails_leaves_the_schema_as_it_was(
    connection: sqlite3.Connection, tmp_path: Path, bad: str
) -> None:
    migrate(connection, "p", FIRST, backups=tmp_path)
    with pytest.raises((sqlite3.OperationalError, ValueError)):
        migrate(connection, "p", {**SECOND, 3: f"CREATE TABLE b (x);\n{bad}"}, backups=tmp_path)
    assert not connection.in_transaction
    assert version_of(connection, "p") == 1
    assert connection.execute("SELECT * FROM a").fetchall() == [(1,)]
    assert migrate(connection, "p", SECOND, backups=tmp_path) == 1


KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from ksi_daemon.database.migrations import migrate
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.create_function("die", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
migrate(connection, "p", {1: "", 2: "CREATE TABLE b (x);", 3: "SELECT die();"}, backups=Path(sys.argv[2]))
"""


def test_a_migration_that_is_killed_leaves_the_schema_as_it_was(
    connection: sqlite3.Connection, path: Path, tmp_path: Path
) -> None:
    migrate(connection, "p", FIRST, backups=tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, path, tmp_path], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert tables(connection) == ["a", "schema_versions"]
    assert version_of(connection, "p") == 1
    assert migrate(connection, "p", SECOND, backups=tmp_path) == 1


def test_a_newer_schema_is_refused_untouched(connection: sqlite3.Connection, tmp_path: Path) -> None:
    migrate(connection, "p", SECOND, backups=tmp_path)
    before = list(connection.iterdump())
    with pytest.raises(SchemaTooNew, match="has schema 2 of p; this version knows 1") as refused:
        migrate(connection, "p", FIRST, backups=tmp_path)
    assert refused.value.details["reason"] == "newer_schema"
    assert refused.value.hint == "run the newer version, or restore a backup"
    assert list(connection.iterdump()) == before


def test_a_newer_schema_can_be_refused_before_the_file_is_opened(
    connection: sqlite3.Connection, path: Path, tmp_path: Path
) -> None:
    migrate(connection, "p", SECOND, backups=tmp_path)
    refuse_newer(path, "p", SECOND)
    with pytest.raises(SchemaTooNew):
        refuse_newer(path, "p", FIRST)


def test_a_file_that_is_not_there_is_not_newer(tmp_path: Path) -> None:
    refuse_newer(tmp_path / "none.db", "p", FIRST)
    assert not (tmp_path / "none.db").exists()


def test_a_new_database_knows_no_version(connection: sqlite3.Connection) -> None:
    assert version_of(connection, "p") == 0


def test_scripts_are_found_by_their_numbers() -> None:
    found = scripts("ksi_daemon.database")
    assert list(found) == sorted(found)
    assert min(found) == 1
    assert "CREATE TABLE log" in found[1]


def test_the_core_goes_from_each_of_its_versions_to_the_newest(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    found = scripts("ksi_daemon.database")
    for number in found:
        upto = {known: script for known, script in found.items() if known <= number}
        assert migrate(connection, CORE, upto, backups=tmp_path) == 1
    assert {"log", "meta", "schema_versions"} <= set(tables(connection))
