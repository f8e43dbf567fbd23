"""What is asked of the graph and changes nothing; each is one hop to a reader, and sees one commit."""

from collections.abc import Mapping, Sequence
from typing import Final

from ksi_common.events.graph import (
    ByProperty,
    Count,
    Counted,
    Entities,
    Entity,
    GetEntity,
    Group,
    QueryEntities,
    QueryRelationships,
    Relationship,
    Relationships,
)
from ksi_common.events.properties import Value
from ksi_daemon.plugin import format_time
from ksi_graph.conditions import demands
from ksi_graph.page_cursors import Position, parse, render
from ksi_graph.selecting import Order, Question, Selection
from ksi_graph.tables import (
    ENTITIES,
    RELATIONSHIPS,
    EntityRow,
    Reading,
    by_keys,
    entities,
    get,
    properties,
    snapshot,
)
from ksi_graph.values import from_row, size

REPLY_BYTES: Final = 1024 * 1024
"""Of one reply, about: lists page by bytes, too."""
_ROW_BYTES: Final = 400
MAX_GROUPS: Final = 1000


def get_entity(request: GetEntity, connection: Reading) -> Entity:
    """Read one entity; raise NotFound."""
    with snapshot(connection):
        row = get(connection, request.id)
        return _entity(row, properties(connection, ENTITIES, [row.number])[row.number])


def query_entities(request: QueryEntities, connection: Reading) -> Entities:
    """Find a page of entities."""
    order = Order(request.order_by, request.descending)
    after = parse(request.cursor, order=str(order))
    with snapshot(connection):
        question = Question(ENTITIES, request.type, demands(request.where))
        found = Selection(connection, question).page(order, after, request.limit + 1)
        shown = found[: request.limit]
        values = properties(connection, ENTITIES, [position.number for position in shown])
        shown = _within_a_reply(shown, values)
        rows = entities(connection, [position.number for position in shown])
    return Entities(
        entities=[_entity(rows[position.number], values[position.number]) for position in shown],
        count=len(shown),
        next=_next(found, shown, order),
    )


def query_relationships(request: QueryRelationships, connection: Reading) -> Relationships:
    """Find a page of relationships; raise NotFound where an end does not exist."""
    order = Order()
    after = parse(request.cursor, order=str(order))
    with snapshot(connection):
        ends = []
        if request.from_ is not None:
            ends.append(("source", get(connection, request.from_, "from").number))
        if request.to is not None:
            ends.append(("target", get(connection, request.to, "to").number))
        question = Question(RELATIONSHIPS, request.type, demands(request.where), ends)
        found = Selection(connection, question).page(order, after, request.limit + 1)
        shown = found[: request.limit]
        values = properties(connection, RELATIONSHIPS, [position.number for position in shown])
        shown = _within_a_reply(shown, values)
        rows = _relationships(connection, values, [position.number for position in shown])
    return Relationships(relationships=rows, count=len(rows), next=_next(found, shown, order))


def count(request: Count, connection: Reading) -> Counted:
    """Count, in groups where they are asked for."""
    kind = ENTITIES if request.target == "entities" else RELATIONSHIPS
    with snapshot(connection):
        selection = Selection(connection, Question(kind, request.type, demands(request.where)), whole=True)
        total = selection.count()
        if request.group_by is None:
            return Counted(total=total)
        if isinstance(request.group_by, ByProperty):
            name = request.group_by.property
            values = selection.by_value(name, MAX_GROUPS + 1)
            groups = [Group(value=from_row(*row[:2]), count=row[2]) for row in values]
            without = total - selection.having(name)
        else:
            groups = [Group(value=row[0], count=row[1]) for row in selection.by_type(MAX_GROUPS + 1)]
            without = 0
    shown = _groups_within_a_reply(groups[:MAX_GROUPS])
    return Counted(total=total, groups=shown, without=without, more_groups=len(groups) > len(shown))


def _entity(row: EntityRow, values: dict[str, Value]) -> Entity:
    return Entity(
        id=row.id,
        type=row.type,
        properties=values,
        version=row.version,
        created_at=format_time(row.created_us),
        updated_at=format_time(row.updated_us),
    )


def _relationships(
    connection: Reading, values: Mapping[int, dict[str, Value]], numbers: Sequence[int]
) -> list[Relationship]:
    sql = (
        "SELECT r.number, r.type, s.id, t.id, r.created_us FROM relationships r "
        "JOIN entities s ON s.number = r.source JOIN entities t ON t.number = r.target "
        "WHERE r.number IN ({})"
    )
    rows = {row[0]: row for row in by_keys(connection, sql, numbers)}
    return [
        Relationship(
            type=rows[number][1],
            from_=rows[number][2],
            to=rows[number][3],
            properties=values[number],
            created_at=format_time(rows[number][4]),
        )
        for number in numbers
    ]


def _within_a_reply(found: list[Position], values: Mapping[int, dict[str, Value]]) -> list[Position]:
    """Cut a page where it has bytes enough; one row fits always."""
    total = 0
    for index, position in enumerate(found):
        total += size(values[position.number]) + _ROW_BYTES
        if index and total > REPLY_BYTES:
            return found[:index]
    return found


def _groups_within_a_reply(groups: list[Group]) -> list[Group]:
    total = 0
    for index, group in enumerate(groups):
        total += size({"": group.value})
        if total > REPLY_BYTES:
            return groups[:index]
    return groups


def _next(found: list[Position], shown: list[Position], order: Order) -> str | None:
    return render(shown[-1], order=str(order)) if len(shown) < len(found) else None
