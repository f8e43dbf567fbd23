"""Schemas: numbered SQL scripts, forward only, backed up first; the core has one, each plugin its own."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from ksi_common.async_db import SchemaTooNew, statements

CORE: Final = "core"

_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_versions (
    component TEXT    NOT NULL PRIMARY KEY,
    version   INTEGER NOT NULL
) WITHOUT ROWID
"""


def scripts(package: str, folder: str = "sql") -> Mapping[int, str]:
    """Read ``NNNN_name.sql`` of a package's folder: scripts by their number."""
    found = {
        _number(file): file.read_text() for file in (files(package) / folder).iterdir() if _is_script(file)
    }
    return dict(sorted(found.items()))


def migrate(
    connection: sqlite3.Connection, component: str, migrations: Mapping[int, str], *, backups: Path
) -> int:
    """Bring ``component`` to its newest schema; give the number of scripts applied.

    All in one transaction: killed half-way, the old schema stands. Raises SchemaTooNew, with nothing
    changed, where the file knows more than ``migrations``.
    """
    current, newest = _versions(connection, component, migrations)
    pending = {number: script for number, script in sorted(migrations.items()) if number > current}
    if not pending:
        return 0
    if current:
        _back_up(connection, backups / f"before-{component}-{newest:04d}.db")
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(_VERSIONS)
        for number, script in pending.items():
            _run(connection, number, script)
        connection.execute("REPLACE INTO schema_versions VALUES (?, ?)", (component, newest))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return len(pending)


def refuse_newer(path: Path, component: str, migrations: Mapping[int, str]) -> None:
    """Raise SchemaTooNew before the file is open for writing: to close it then would change it."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            _versions(connection, component, migrations)
    except sqlite3.OperationalError:
        return  # no file yet, or one that must be rolled back: ``migrate`` looks again


def version_of(connection: sqlite3.Connection, component: str) -> int:
    """Give the schema version of ``component``; 0 where it has none."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_versions'").fetchone()
    if known is None:
        return 0
    row = connection.execute(
        "SELECT version FROM schema_versions WHERE component = ?", (component,)
    ).fetchone()
    return int(row[0]) if row else 0


def _versions(
    connection: sqlite3.Connection, component: str, migrations: Mapping[int, str]
) -> tuple[int, int]:
    current, newest = version_of(connection, component), max(migrations, default=0)
    if current > newest:
        raise SchemaTooNew(
            f"the database has schema {current} of {component}; this version knows {newest}",
            reason="newer_schema",
            hint="run the newer version, or restore a backup",
        )
    return current, newest


def _run(connection: sqlite3.Connection, number: int, script: str) -> None:
    try:
        for statement in statements(script):
            connection.execute(statement)
    except sqlite3.Error as error:
        error.args = (f"migration {number}: {error}",)
        raise


def _back_up(connection: sqlite3.Connection, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    connection.execute("VACUUM INTO ?", (str(target),))
    target.chmod(0o600)
    with closing(sqlite3.connect(target)) as backup:
        backup.execute("PRAGMA journal_mode = WAL")  # a copy is not in the mode of its original


def _is_script(file: Traversable) -> bool:
    return file.name.endswith(".sql") and file.name[:4].isdigit()


def _number(file: Traversable) -> int:
    return int(file.name[:4])
