"""Two tables, held against each other row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from ksi_daemon.database import Connection

SHOWN: Final = 500
"""Characters of a row in a difference."""

_Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of it: how many rows the live table has, and where the first difference is."""

    table: str
    rows: int
    difference: str | None


def compare(connection: Connection, table: str, *, made: str) -> Compared:
    """Compare a table with its twin in the attached schema ``made``: types and values, byte for byte."""
    columns = [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]
    rows = 0
    for live, other in zip_longest(_rows(connection, "main", table), _rows(connection, made, table)):
        if live is None or other is None or not _same(live, other):
            return Compared(table, rows, _difference(table, columns, live, other))
        rows += 1
    return Compared(table, rows, None)


def _rows(connection: Connection, schema: str, table: str) -> Iterator[_Row]:
    key = [
        row[0]
        for row in connection.execute("SELECT name FROM pragma_table_info(?) WHERE pk ORDER BY pk", (table,))
    ]
    order = ", ".join(key) or "rowid"
    sql = f"SELECT * FROM {schema}.{table} ORDER BY {order}"  # noqa: S608 -- a table of ours
    yield from map(tuple, connection.execute(sql))


def _same(one: _Row, other: _Row) -> bool:
    return one == other and [*map(type, one)] == [*map(type, other)]


def _difference(table: str, columns: list[str], live: _Row | None, made: _Row | None) -> str:
    if live is not None and made is not None:
        pairs = zip(columns, live, made, strict=True)
        column, one, other = next(pair for pair in pairs if not _same(pair[1:2], pair[2:3]))
        return f"{table} {_shown(live)}: {column} is {_shown(one)} live and {_shown(other)} replayed"
    if live is not None:
        return f"{table} {_shown(live)}: it is live, and not replayed"
    return f"{table} {_shown(made)}: it is replayed, and not live"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
