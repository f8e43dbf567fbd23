"""A database that one process makes alone: of a sandbox, a snapshot, or a home that is not one yet."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from ksi_common.async_db import pragmas
from ksi_daemon.database.migrations import CORE, migrate, scripts

_CORE_PACKAGE = __package__ or ""


@contextmanager
def apart(
    path: Path, migrations: Mapping[str, Mapping[int, str]], *, lasting: bool = False
) -> Iterator[sqlite3.Connection]:
    """Open the file at ``path``, new or not, with the core's tables and those of plugins at their newest.

    Unless it is ``lasting`` nothing is kept safe: a crash leaves a file that is good for nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with closing(sqlite3.connect(path.absolute().as_uri(), uri=True, isolation_level=None)) as connection:
        path.chmod(0o600)
        if lasting:
            for pragma in pragmas(read_only=False):
                connection.execute(pragma)
        else:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA foreign_keys = OFF")  # rows come in an order that says nothing of them
        backups = path.parent.parent / "backups"
        for component, wanted in ((CORE, scripts(_CORE_PACKAGE)), *migrations.items()):
            migrate(connection, component, wanted, backups=backups)
        yield connection


def attach(connection: sqlite3.Connection, path: Path, name: str) -> None:
    """Let ``name.table`` be read of another file, which is not written."""
    connection.execute(f"ATTACH ? AS {name}", (f"{path.absolute().as_uri()}?mode=ro",))


def tables_of(connection: sqlite3.Connection, schema: str = "main") -> set[str]:
    """Name the tables that there are."""
    sql = f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"  # noqa: S608
    return {row[0] for row in connection.execute(sql)}


def tables_made_by(migrations: Mapping[int, str]) -> set[str]:
    """Name the tables that the scripts of a plugin make."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, "plugin", migrations, backups=Path())
        return tables_of(connection) - {"schema_versions"}


def copy_table(connection: sqlite3.Connection, schema: str, table: str) -> None:
    """Have the rows of a table, and the last number it gave, be those of the table in another schema."""
    connection.execute(f"DELETE FROM main.{table}")  # noqa: S608 -- tables of ours, here and below
    connection.execute(f"INSERT INTO main.{table} SELECT * FROM {schema}.{table}")  # noqa: S608
    number = last_number(connection, schema, table)
    if number or last_number(connection, "main", table):
        connection.execute("DELETE FROM main.sqlite_sequence WHERE name = ?", (table,))
        connection.execute("INSERT INTO main.sqlite_sequence VALUES (?, ?)", (table, number))


def last_number(connection: sqlite3.Connection, schema: str, table: str) -> int:
    """Give the last number that a table gave which uses none twice; 0: none."""
    master = f"SELECT 1 FROM {schema}.sqlite_master WHERE name = 'sqlite_sequence'"  # noqa: S608
    if connection.execute(master).fetchone() is None:
        return 0
    sql = f"SELECT seq FROM {schema}.sqlite_sequence WHERE name = ?"  # noqa: S608
    row = connection.execute(sql, (table,)).fetchone()
    return int(row[0]) if row else 0
