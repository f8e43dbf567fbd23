"""What the graph should answer: a small model in memory, and its tables, made again from the log."""

import sqlite3  # noqa: TID251 -- a database of the checker's own
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from ksi_common.async_db import statements
from ksi_common.envelope import StoredEvent
from ksi_common.events.graph import (
    CreateEntity,
    CreateRelationship,
    DeleteEntity,
    DeleteRelationship,
    NewEntity,
    QueryEntities,
    Traverse,
    UpdateEntity,
    told,
)
from ksi_common.events.properties import Condition, Value
from ksi_daemon.database.migrations import scripts
from ksi_graph.applying import apply
from tests.support.databases import rows

TABLES: Final = ("entities", "entity_properties", "relationships", "relationship_properties")

Edge = tuple[str, str, str]
"""From, type, to."""
RANKS: Final = {bool: 0, type(None): 1, int: 2, float: 2, str: 3}


@dataclass
class Thing:
    """One entity."""

    type: str
    properties: dict[str, Value]
    version: int = 1


@dataclass
class GraphModel:
    """Entities by id and relationships by their ends, both in the order of creation."""

    things: dict[str, Thing] = field(default_factory=dict)
    edges: dict[Edge, dict[str, Value]] = field(default_factory=dict)

    def create(self, request: CreateEntity | NewEntity) -> str:
        assert request.id is not None
        if request.id in self.things:
            return "entity_exists"
        self.things[request.id] = Thing(request.type, dict(request.properties))
        return "created"

    def bulk_create(self, requests: Sequence[NewEntity]) -> str:
        before = dict(self.things)
        for request in requests:
            if self.create(request) != "created":
                self.things = before
                return "entity_exists"
        return "created"

    def update(self, request: UpdateEntity) -> str:
        refused = self._refuse(request.id, request.expected_version)
        if refused:
            return refused
        thing = self.things[request.id]
        after = {name: value for name, value in thing.properties.items() if name not in request.remove}
        after |= request.properties
        if exactly(after) == exactly(thing.properties):
            return "unchanged"
        self.things[request.id] = Thing(thing.type, after, thing.version + 1)
        return "updated"

    def delete(self, request: DeleteEntity) -> str:
        refused = self._refuse(request.id, request.expected_version)
        if refused:
            return refused
        del self.things[request.id]
        self.edges = {edge: it for edge, it in self.edges.items() if request.id not in {edge[0], edge[2]}}
        return "deleted"

    def relate(self, request: CreateRelationship) -> str:
        edge = (request.from_, request.type, request.to)
        if not {request.from_, request.to} <= self.things.keys():
            return "no_entity"
        if edge in self.edges:
            return "relationship_exists"
        self.edges[edge] = dict(request.properties)
        return "created"

    def unrelate(self, request: DeleteRelationship) -> str:
        if not {request.from_, request.to} <= self.things.keys():
            return "no_entity"
        known = self.edges.pop((request.from_, request.type, request.to), None)
        return "no_relationship" if known is None else "deleted"

    def query(self, request: QueryEntities) -> list[str]:
        """List the ids of everything that fits, in order."""
        fitting = [
            ident
            for ident, thing in self.things.items()
            if request.type in {None, thing.type} and fits(thing.properties, request.where)
        ]
        by = request.order_by
        if request.descending:
            fitting.reverse()
        if by is None:
            return fitting
        having = [ident for ident in fitting if by in self.things[ident].properties]
        # Stable both ways: those that are equal stay in the order that they are in.
        having.sort(key=lambda ident: rank(self.things[ident].properties[by]), reverse=request.descending)
        return [*having, *(ident for ident in fitting if by not in self.things[ident].properties)]

    def reach(self, request: Traverse) -> dict[str, int]:
        """Give the depth of everything that can be reached."""
        depths = {request.start: 0}
        level = [request.start]
        for depth in range(1, request.depth + 1):
            level = [to for one in level for to in self._beside(one, request) if to not in depths]
            depths.update((to, depth) for to in level)
        del depths[request.start]
        return depths

    def counts(self, name: str) -> Counter[tuple[int, Any]]:
        """Count the values of a property."""
        return Counter(
            rank(thing.properties[name]) for thing in self.things.values() if name in thing.properties
        )

    def _beside(self, ident: str, request: Traverse) -> Iterator[str]:
        for source, kind, target in self.edges:
            if request.types and kind not in request.types:
                continue
            if source == ident and request.direction != "incoming":
                yield target
            if target == ident and request.direction != "outgoing":
                yield source

    def _refuse(self, ident: str, version: int | None) -> str | None:
        if ident not in self.things:
            return "no_entity"
        return "wrong_version" if version not in {None, self.things[ident].version} else None


def fits(properties: Mapping[str, Value], where: Mapping[str, Any]) -> bool:
    """Hold properties against what is wanted."""
    return all(
        _holds(properties, name, wanted)
        if isinstance(wanted, Condition)
        else name in properties and rank(properties[name]) == rank(wanted)
        for name, wanted in where.items()
    )


def rank(value: Value) -> tuple[int, Any]:
    """Give what values are ordered and compared by: their kind, then themselves."""
    return RANKS[type(value)], 0 if value is None else value


def exactly(properties: Mapping[str, Value]) -> str:
    """Render what tells 1 from 1.0 and from True."""
    return repr(sorted(properties.items()))


Contents = dict[str, list[tuple[Any, ...]]]


def replayed_log(database: Path) -> Contents:
    """Make the tables again from the log of a database that nobody has open."""
    sql = "SELECT name, data, time FROM log WHERE kind = 0 ORDER BY seq"
    return _applied((name, orjson.loads(data), time_us) for name, data, time_us in rows(database, sql))


def replayed(events: Iterable[StoredEvent]) -> Contents:
    """Make the tables again, from what was told alone, in an empty database."""
    return _applied((event.event, orjson.loads(event.data), event.time_us) for event in events)


def _applied(events: Iterable[tuple[str, dict[str, Any], int]]) -> Contents:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for script in scripts("ksi_graph").values():
            for statement in statements(script):
                connection.execute(statement)
        for name, data, time_us in events:
            happened = told(name, data)
            if happened is not None:
                apply(connection, happened, time_us)
        return contents(connection)


def contents(connection: sqlite3.Connection) -> Contents:
    """Read every row of the graph's tables, and the type that each value is stored as."""
    found = {}
    for table in TABLES:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        everything = ", ".join(f"{column}, typeof({column})" for column in columns)
        found[table] = connection.execute(f"SELECT {everything} FROM {table} ORDER BY 1, 3").fetchall()
    return found


def _holds(properties: Mapping[str, Value], name: str, wanted: Condition) -> bool:
    given = wanted.model_fields_set
    there = name in properties
    value = properties.get(name)
    checks = []
    if "eq" in given:
        checks.append(there and rank(value) == rank(wanted.eq))
    if "ne" in given:
        checks.append(not there or rank(value) != rank(wanted.ne))
    for word in ("lt", "lte", "gt", "gte"):
        bound = getattr(wanted, word)
        if bound is not None:
            checks.append(there and rank(value)[0] == rank(bound)[0] and _compare(word, value, bound))
    if wanted.in_ is not None:
        checks.append(there and rank(value) in [rank(one) for one in wanted.in_])
    if wanted.contains is not None:
        checks.append(isinstance(value, str) and wanted.contains in value)
    if wanted.exists is not None:
        checks.append(there == wanted.exists)
    return all(checks)


def _compare(word: str, value: Any, bound: Any) -> bool:
    return bool(
        {"lt": value < bound, "lte": value <= bound, "gt": value > bound, "gte": value >= bound}[word]
    )
