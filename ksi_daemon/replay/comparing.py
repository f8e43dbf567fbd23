"""Two tables, held against each other row by row."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final

from ksi_common.records import record
from ksi_daemon.database import Connection
from ksi_daemon.database.apart import last_number

SHOWN: Final = 500
"""Characters of a row in a difference."""

_Row = tuple[Any, ...]


@record
class Compared:
    """What came of it: how many rows are the same, and where the first difference is."""

    plugin: str
    table: str
    rows: int
    difference: str | None


def compare(connection: Connection, plugin: str, table: str) -> Compared:
    """Hold a table of the attached schema ``live`` against the one made: types and values, byte for byte."""
    columns = _columns(connection, table, "ORDER BY cid")
    order = ", ".join(_columns(connection, table, "WHERE pk ORDER BY pk")) or "rowid"
    sides = (_rows(connection, schema, table, order) for schema in ("live", "main"))
    rows = 0
    for live, made in zip_longest(*sides):
        if live is None or made is None or not _same(live, made):
            return Compared(plugin, table, rows, _difference(table, columns, live, made))
        rows += 1
    live_number, made_number = (last_number(connection, schema, table) for schema in ("live", "main"))
    if live_number == made_number:
        return Compared(plugin, table, rows, None)
    said = f"{table}: the last number given is {live_number} live and {made_number} replayed"
    return Compared(plugin, table, rows, said)


def _columns(connection: Connection, table: str, which: str) -> Sequence[str]:
    sql = f"SELECT name FROM pragma_table_info(?) {which}"  # noqa: S608 -- of constants
    return [row[0] for row in connection.execute(sql, (table,))]


def _rows(connection: Connection, schema: str, table: str, order: str) -> Iterator[_Row]:
    yield from connection.execute(f"SELECT * FROM {schema}.{table} ORDER BY {order}")  # noqa: S608


def _same(one: _Row, other: _Row) -> bool:
    return repr(one) == repr(other)  # 1, 1.0 and '1' are three, and so are 0.0 and -0.0 two


def _difference(table: str, columns: Sequence[str], live: _Row | None, made: _Row | None) -> str:
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
