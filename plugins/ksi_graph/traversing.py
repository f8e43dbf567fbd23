"""What can be reached from an entity: level by level, each entity once, so that circles end.

A recursive statement would follow every path, of which there are many more than entities.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ksi_common.events.graph import Reached, Step, Traverse, Traversed
from ksi_common.events.properties import Value
from ksi_common.records import record
from ksi_graph.tables import ENTITIES, Reading, by_keys, entities, get, marks, properties, snapshot
from ksi_graph.values import size

MAX_LOOKED_AT: Final = 100_000
"""Relationships of one traversal."""
REPLY_BYTES: Final = 1024 * 1024
_ENTITY_BYTES: Final = 100
_STEP_BYTES: Final = 300


@record
class _Edge:
    """How an entity was reached first: the relationship, which may be gone against."""

    source: int
    type: str
    target: int
    came_from: int
    depth: int


class _Walk:
    """The entities reached so far, in order."""

    def __init__(self, connection: Reading, request: Traverse, start: int) -> None:
        self._connection = connection
        self._request = request
        self._start = start
        self.reached: dict[int, _Edge] = {}
        self.truncated = False
        self._looked_at = 0

    def go(self) -> None:
        """Reach what can be reached, or as much as is allowed."""
        level = [self._start]
        for depth in range(1, self._request.depth + 1):
            level = self._next(level, depth)
            if self.truncated or not level:
                return

    def _next(self, level: Sequence[int], depth: int) -> list[int]:
        found: list[int] = []
        for source, kind, target, came_from, to in self._edges(level):
            self._looked_at += 1
            known = to == self._start or to in self.reached
            if self._looked_at > MAX_LOOKED_AT or (not known and len(self.reached) >= self._request.limit):
                self.truncated = True
                return found
            if not known:
                self.reached[to] = _Edge(source, kind, target, came_from, depth)
                found.append(to)
        return found

    def _edges(self, level: Sequence[int]) -> Iterator[tuple[int, str, int, int, int]]:
        """Yield relationships of some entities: source, type, target, the end left, the end come to."""
        wanted = self._request.types
        of_type = f"AND type IN ({marks(wanted)})" if wanted else ""
        ways = {"outgoing": ("source",), "incoming": ("target",)}.get(
            self._request.direction, ("source", "target")
        )
        for end in ways:
            other = "target" if end == "source" else "source"
            sql = (
                f"SELECT source, type, target, {end}, {other} FROM relationships "  # noqa: S608
                f"INDEXED BY relationships_by_{end} WHERE {end} IN ({{}}) {of_type}"
            )
            yield from by_keys(self._connection, sql, level, wanted)


def traverse(request: Traverse, connection: Reading) -> Traversed:
    """Walk; raise NotFound where the start does not exist."""
    with snapshot(connection):
        start = get(connection, request.start, "start")
        walk = _Walk(connection, request, start.number)
        walk.go()
        numbers = list(walk.reached)
        rows = entities(connection, [start.number, *numbers])
        values = properties(connection, ENTITIES, numbers) if request.properties else None
    names = {number: row.id for number, row in rows.items()}
    shown = [
        Reached(
            id=names[number],
            type=rows[number].type,
            depth=walk.reached[number].depth,
            properties=None if values is None else values[number],
            path=_path(walk.reached, names, number) if request.paths else None,
        )
        for number in _within_a_reply(walk.reached, values, paths=request.paths)
    ]
    truncated = walk.truncated or len(shown) < len(numbers)
    return Traversed(start=start.id, entities=shown, count=len(shown), truncated=truncated)


def _path(reached: Mapping[int, _Edge], names: Mapping[int, str], number: int) -> list[Step]:
    steps = []
    edge = reached.get(number)
    while edge is not None:
        steps.append(Step(type=edge.type, from_=names[edge.source], to=names[edge.target]))
        edge = reached.get(edge.came_from)
    return steps[::-1]


def _within_a_reply(
    reached: Mapping[int, _Edge], values: Mapping[int, dict[str, Value]] | None, *, paths: bool
) -> Iterator[int]:
    """Yield entities, the nearest first, while a reply has room; the first always fits."""
    total = 0
    for number, edge in reached.items():
        total += _ENTITY_BYTES + (edge.depth * _STEP_BYTES if paths else 0)
        total += size(values[number]) if values is not None else 0
        if total > REPLY_BYTES:
            return
        yield number
