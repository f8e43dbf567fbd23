"""From what was told to the tables. The only writer of the graph, whether it happens or is made again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ksi_common.events.graph import (
    EntityCreated,
    EntityDeleted,
    EntityUpdated,
    RelationshipCreated,
    RelationshipDeleted,
    Told,
)
from ksi_common.events.properties import Value
from ksi_graph.tables import ENTITIES, RELATIONSHIPS, Kind, Reading, get, marks, relationship
from ksi_graph.values import to_row

AT_ONCE: Final = 200
"""Rows of one statement."""
_END: Final = "(SELECT number FROM entities WHERE id = ?)"


def apply(tables: Reading, told: Told, time_us: int) -> None:
    """Do to the tables what was told at a time (microseconds since 1970).

    Whatever is told was possible when it was: applied in the order told, to tables that began empty,
    the same rows with the same numbers come of it.
    """
    _APPLY[type(told)](tables, told, time_us)


def create(tables: Reading, told: Sequence[tuple[EntityCreated, int]]) -> None:
    """Do what ``apply`` does for each of several entities, each with its time, in few statements."""
    rows = [part for event, time_us in told for part in (event.id, event.type, 1, time_us, time_us)]
    _insert(tables, "INSERT INTO entities (id, type, version, created_us, updated_us)", 5, rows)
    first = _last(tables) - len(told) + 1
    _put(tables, ENTITIES, [(first + n, event.type, event.properties) for n, (event, _) in enumerate(told)])


def _entity_created(tables: Reading, told: EntityCreated, time_us: int) -> None:
    create(tables, [(told, time_us)])


def _entity_updated(tables: Reading, told: EntityUpdated, time_us: int) -> None:
    tables.execute(
        "UPDATE entities SET version = ?, updated_us = ? WHERE id = ?", (told.version, time_us, told.id)
    )
    owner = get(tables, told.id).number
    if told.removed:
        tables.execute(
            f"DELETE FROM entity_properties WHERE owner = ? AND name IN ({marks(told.removed)})",  # noqa: S608
            (owner, *told.removed),
        )
    _put(tables, ENTITIES, [(owner, told.type, told.properties)])


def _entity_deleted(tables: Reading, told: EntityDeleted, _: int) -> None:
    owner = get(tables, told.id).number
    tables.execute("DELETE FROM entity_properties WHERE owner = ?", (owner,))
    tables.execute("DELETE FROM entities WHERE number = ?", (owner,))


def _relationship_created(tables: Reading, told: RelationshipCreated, time_us: int) -> None:
    tables.execute(
        f"INSERT INTO relationships (source, type, target, created_us) VALUES ({_END}, ?, {_END}, ?)",  # noqa: S608
        (told.from_, told.type, told.to, time_us),
    )
    _put(tables, RELATIONSHIPS, [(_last(tables), told.type, told.properties)])


def _relationship_deleted(tables: Reading, told: RelationshipDeleted, _: int) -> None:
    source, target = get(tables, told.from_).number, get(tables, told.to).number
    number = relationship(tables, source, told.type, target)
    tables.execute("DELETE FROM relationship_properties WHERE owner = ?", (number,))
    tables.execute("DELETE FROM relationships WHERE number = ?", (number,))


_APPLY: Final[Mapping[type[Any], Callable[[Reading, Any, int], None]]] = {
    EntityCreated: _entity_created,
    EntityUpdated: _entity_updated,
    EntityDeleted: _entity_deleted,
    RelationshipCreated: _relationship_created,
    RelationshipDeleted: _relationship_deleted,
}


def _put(tables: Reading, kind: Kind, owned: Sequence[tuple[int, str, Mapping[str, Value]]]) -> None:
    rows = [
        part
        for owner, type_, properties in owned
        for name, value in properties.items()
        for part in (owner, name, type_, *to_row(value))
    ]
    _insert(tables, f"REPLACE INTO {kind.properties}", 5, rows)


def _insert(tables: Reading, into: str, columns: int, values: Sequence[Any]) -> None:
    """Insert rows, many in a statement: each statement costs several times what a row does."""
    row = f"({', '.join('?' * columns)})"
    size = AT_ONCE * columns
    for begin in range(0, len(values), size):
        some = values[begin : begin + size]
        tables.execute(f"{into} VALUES {', '.join([row] * (len(some) // columns))}", some)


def _last(tables: Reading) -> int:
    return int(tables.execute("SELECT last_insert_rowid()").fetchone()[0])
