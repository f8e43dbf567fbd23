"""What readers see of a projection: one entry by its key, or many in the order of their keys."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ksi_common.errors import InvalidArgument
from ksi_daemon.database import Connection
from ksi_daemon.projections.generations import Generation

Row = Mapping[str, Any]
Entry = tuple[Sequence[Any], Row]
"""A key, and what is there."""


def by_key(connection: Connection, generation: Generation, key: Sequence[Any]) -> Row | None:
    """Read a document, or the row with a primary key; raise InvalidArgument where that has other columns."""
    columns = _key_of(connection, generation)
    if len(key) != len(columns):
        raise InvalidArgument(
            f"the key of projection {generation.name} is {', '.join(columns)}", field="key", columns=columns
        )
    terms = dict(zip(columns, key, strict=True))
    found = _select(connection, generation, terms, "", (), 1)
    return found[0][1] if found else None


def in_order(
    connection: Connection,
    generation: Generation,
    *,
    where: Mapping[str, Any],
    after: Sequence[Any] | None,
    limit: int,
) -> Sequence[Entry]:
    """Read entries whose columns are equal to ``where``, after a key."""
    columns = _key_of(connection, generation)
    known = _columns(connection, generation)
    unknown = [name for name in where if generation.columns is None or name not in known]
    if unknown:
        raise InvalidArgument(f"projection {generation.name} has no column {unknown[0]!r}", field="where")
    if after is None:
        return _select(connection, generation, where, "", (), limit)
    if len(after) != len(columns):
        raise InvalidArgument(f"after: the key of projection {generation.name} is {columns}", field="after")
    beyond = f"({', '.join(columns)}) > ({', '.join('?' * len(columns))})"
    return _select(connection, generation, where, beyond, after, limit)


def _select(
    connection: Connection,
    generation: Generation,
    equal: Mapping[str, Any],
    beyond: str,
    after: Sequence[Any],
    limit: int,
) -> Sequence[Entry]:
    table, own, parameters = generation.table, "", [*equal.values(), *after]
    for value in parameters:
        if not isinstance(value, str | int | float | None):
            raise InvalidArgument(
                f"projection {generation.name} has no column with such values: {value!r:.80}"
            )
    if generation.columns is None:
        table, own = "projection_documents", "name = ? AND generation = ?"
        parameters = [generation.name, generation.number, *parameters]
    terms = [own, *(f"{name} = ?" for name in equal), beyond]
    columns = _key_of(connection, generation)
    sql = (
        f"SELECT * FROM {table} WHERE {' AND '.join(filter(None, terms)) or '1'} "  # noqa: S608 -- own names
        f"ORDER BY {', '.join(columns)} LIMIT ?"
    )
    cursor = connection.execute(sql, (*parameters, limit))
    names = [column[0] for column in cursor.description]
    return [_entry(dict(zip(names, row, strict=True)), columns, generation) for row in cursor]


def _entry(row: dict[str, Any], columns: Sequence[str], generation: Generation) -> Entry:
    key = [row[column] for column in columns]
    return key, orjson.loads(row["state"]) if generation.columns is None else row


def _key_of(connection: Connection, generation: Generation) -> Sequence[str]:
    if generation.columns is None:
        return ("key",)
    known = _columns(connection, generation)
    return sorted((name for name, place in known.items() if place), key=known.__getitem__)


def _columns(connection: Connection, generation: Generation) -> Mapping[str, int]:
    """Give the columns of a table, and the place that each has in the primary key: 1, 2, …, or 0."""
    found = connection.execute("SELECT name, pk FROM pragma_table_info(?)", (generation.table,))
    return {row[0]: row[1] for row in found}
