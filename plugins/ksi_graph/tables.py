"""The tables of the graph: what can be done with a connection, and who is called what."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from sqlite3 import OperationalError  # noqa: TID251 -- to be caught: nothing is opened
from typing import Any, Final, Protocol

from ksi_common.events.properties import Value
from ksi_common.guessing import nearest
from ksi_common.records import record
from ksi_daemon.plugin import NotFound
from ksi_graph.values import from_row

AT_ONCE: Final = 500
"""Rows looked up by their keys in one statement."""
_NEIGHBOURS: Final = 50


class Cursor(Protocol):
    """What a statement gave."""

    def fetchone(self) -> Any:
        """Give the next row, or None."""

    def fetchall(self) -> list[Any]:
        """Give all rows."""

    def __iter__(self) -> Iterator[Any]: ...


class Reading(Protocol):
    """A connection of a reader, or the transaction of a unit."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor:
        """Run one statement."""


@record
class Kind:
    """Entities, or relationships: the tables of either have the same shape."""

    rows: str
    properties: str


ENTITIES: Final = Kind("entities", "entity_properties")
RELATIONSHIPS: Final = Kind("relationships", "relationship_properties")


@record
class EntityRow:
    """One entity as its row has it."""

    number: int
    id: str
    type: str
    version: int
    created_us: int
    updated_us: int


@contextmanager
def snapshot(connection: Reading) -> Iterator[None]:
    """Let all statements of the block see the same commit; no longer than one hop to a reader."""
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        with suppress(OperationalError):  # SQLite may have rolled back by itself, as at an I/O error
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def find(tables: Reading, ident: str) -> EntityRow | None:
    """Look an entity up by its id."""
    row = tables.execute("SELECT * FROM entities WHERE id = ?", (ident,)).fetchone()
    return EntityRow(*row) if row else None


def get(tables: Reading, ident: str, field: str = "id") -> EntityRow:
    """Look an entity up by its id; raise NotFound, which names ids that are nearly right."""
    row = find(tables, ident)
    if row is None:
        near = _near(tables, ident)
        raise NotFound(
            f"no entity {ident!r}",
            reason="no_entity",
            field=field,
            nearest=near,
            hint=f"did you mean {near[0]!r}?" if near else "state:entity:query lists what there is",
        )
    return row


def relationship(tables: Reading, source: int, kind: str, target: int) -> int | None:
    """Give the number of a relationship."""
    sql = "SELECT number FROM relationships WHERE source = ? AND type = ? AND target = ?"
    row = tables.execute(sql, (source, kind, target)).fetchone()
    return int(row[0]) if row else None


def entities(tables: Reading, numbers: Sequence[int]) -> Mapping[int, EntityRow]:
    """Read the rows of entities."""
    sql = "SELECT * FROM entities WHERE number IN ({})"
    return {row[0]: EntityRow(*row) for row in by_keys(tables, sql, numbers)}


def properties(tables: Reading, kind: Kind, numbers: Sequence[int]) -> Mapping[int, dict[str, Value]]:
    """Read the properties of entities or relationships, in the order of their names."""
    sql = f"SELECT owner, name, kind, value FROM {kind.properties} WHERE owner IN ({{}})"  # noqa: S608
    found: dict[int, dict[str, Value]] = {number: {} for number in numbers}
    for owner, name, value_kind, value in by_keys(tables, sql, numbers):
        found[owner][name] = from_row(value_kind, value)
    return found


def by_keys(
    tables: Reading, sql: str, keys: Sequence[int] | Sequence[str], parameters: Sequence[Any] = ()
) -> Iterator[Any]:
    """Run a statement for some keys at a time; ``{}`` in it stands for them, before ``parameters``."""
    for begin in range(0, len(keys), AT_ONCE):
        some = keys[begin : begin + AT_ONCE]
        yield from tables.execute(sql.format(marks(some)), (*some, *parameters))


def marks(values: Sequence[object]) -> str:
    """Give a mark for each of some parameters."""
    return ", ".join("?" * len(values))


def types(tables: Reading, kind: Kind) -> Sequence[str]:
    """List the types that there are, in order, by a look-up for each."""
    sql = (
        "WITH RECURSIVE found (type) AS ("  # noqa: S608
        f"SELECT min(type) FROM {kind.rows} UNION ALL "
        f"SELECT (SELECT min(type) FROM {kind.rows} WHERE type > found.type) FROM found "
        "WHERE found.type IS NOT NULL) SELECT type FROM found WHERE type IS NOT NULL"
    )
    return [row[0] for row in tables.execute(sql)]


def _near(tables: Reading, ident: str) -> list[str]:
    """Guess which id was meant, among those that begin as it does."""
    after = "SELECT id FROM entities WHERE id > ? ORDER BY id LIMIT ?"
    before = "SELECT id FROM entities WHERE id < ? ORDER BY id DESC LIMIT ?"
    ids: Iterable[str] = [
        row[0] for sql in (after, before) for row in tables.execute(sql, (ident, _NEIGHBOURS))
    ]
    return nearest(ident, ids, limit=3)
