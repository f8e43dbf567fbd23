"""Units of work that change the graph: they look whether it can be, tell it, and do what they told."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ksi_common.events.graph import (
    BulkCreateEntities,
    CreateEntity,
    CreateRelationship,
    DeleteEntity,
    DeleteRelationship,
    EntitiesStored,
    EntityCreated,
    EntityDeleted,
    EntityGone,
    EntityStored,
    EntityUpdated,
    NewEntity,
    RelationshipCreated,
    RelationshipDeleted,
    RelationshipStored,
    Told,
    UpdateEntity,
)
from ksi_common.events.properties import MAX_PROPERTIES, Value
from ksi_daemon.plugin import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Transaction,
    new_id,
)
from ksi_graph import applying
from ksi_graph.tables import ENTITIES, EntityRow, by_keys, get, properties, relationship
from ksi_graph.values import MAX_BYTES, same, size

MAX_BULK_PROPERTIES: Final = 5000
"""Of one ``bulk_create``: a unit has 250 ms."""
MAX_ENDED: Final = 500
"""Relationships that end with one entity, likewise."""


def create(request: CreateEntity, tx: Transaction) -> EntityStored:
    """Create an entity."""
    (told,) = _create([request], tx)
    return EntityStored(status="created", id=told.id, type=told.type, version=1)


def bulk_create(request: BulkCreateEntities, tx: Transaction) -> EntitiesStored:
    """Create entities, all or none."""
    told = _create(request.entities, tx)
    return EntitiesStored(ids=[event.id for event in told], count=len(told))


def update(request: UpdateEntity, tx: Transaction) -> EntityStored:
    """Set and remove properties; tell it where that changes anything."""
    entity = get(tx, request.id)
    _expect(entity, request.expected_version)
    before = properties(tx, ENTITIES, [entity.number])[entity.number]
    changed = {
        name: value
        for name, value in request.properties.items()
        if name not in before or not same(before[name], value)
    }
    removed = sorted({name for name in request.remove if name in before})
    if not changed and not removed:
        return EntityStored(status="unchanged", id=entity.id, type=entity.type, version=entity.version)
    after = {name: value for name, value in before.items() if name not in removed} | changed
    _check(after, f"entity {entity.id!r}")
    version = entity.version + 1
    _tell(
        tx,
        EntityUpdated(id=entity.id, type=entity.type, version=version, properties=changed, removed=removed),
    )
    return EntityStored(status="updated", id=entity.id, type=entity.type, version=version)


def delete(request: DeleteEntity, tx: Transaction) -> EntityGone:
    """Delete an entity; tell the end of its relationships first, in the order in which they were made."""
    entity = get(tx, request.id)
    _expect(entity, request.expected_version)
    ended = list(_ends(tx, entity))
    if len(ended) > MAX_ENDED:
        raise FailedPrecondition(
            f"entity {entity.id!r} has more than {MAX_ENDED} relationships",
            reason="too_many_relationships",
            limit=MAX_ENDED,
            hint="delete some of them first: state:relationship:query lists them",
        )
    for told in ended:
        _tell(tx, told)
    _tell(tx, EntityDeleted(id=entity.id, type=entity.type, version=entity.version))
    return EntityGone(id=entity.id, type=entity.type, relationships_deleted=len(ended))


def relate(request: CreateRelationship, tx: Transaction) -> RelationshipStored:
    """Relate two entities."""
    source, target = get(tx, request.from_, "from"), get(tx, request.to, "to")
    _check(request.properties, "the relationship")
    if relationship(tx, source.number, request.type, target.number) is not None:
        raise AlreadyExists(
            f"{source.id!r} {request.type} {target.id!r} already", reason="relationship_exists"
        )
    _tell(
        tx,
        RelationshipCreated(type=request.type, from_=source.id, to=target.id, properties=request.properties),
    )
    return RelationshipStored(status="created", type=request.type, from_=source.id, to=target.id)


def unrelate(request: DeleteRelationship, tx: Transaction) -> RelationshipStored:
    """End a relationship; raise NotFound, which names those that there are between the two."""
    source, target = get(tx, request.from_, "from"), get(tx, request.to, "to")
    if relationship(tx, source.number, request.type, target.number) is None:
        sql = "SELECT type FROM relationships WHERE source = ? AND target = ? ORDER BY type LIMIT 10"
        near = [row[0] for row in tx.execute(sql, (source.number, target.number))]
        raise NotFound(
            f"{source.id!r} does not {request.type} {target.id!r}",
            reason="no_relationship",
            nearest=near,
            hint=f"from one to the other there is {', '.join(near)}" if near else None,
        )
    _tell(tx, RelationshipDeleted(type=request.type, from_=source.id, to=target.id))
    return RelationshipStored(status="deleted", type=request.type, from_=source.id, to=target.id)


def _create(new: Sequence[NewEntity | CreateEntity], tx: Transaction) -> Sequence[EntityCreated]:
    told = [
        EntityCreated(id=entity.id or new_id(), type=entity.type, properties=entity.properties)
        for entity in new
    ]
    for event in told:
        _check(event.properties, f"entity {event.id!r}")
    count = sum(len(event.properties) for event in told)
    if count > MAX_BULK_PROPERTIES:
        raise ResourceExhausted(
            f"{count} properties at once, of {MAX_BULK_PROPERTIES}",
            reason="too_many_properties",
            limit=MAX_BULK_PROPERTIES,
            retryable=False,
            hint="create fewer entities at a time",
        )
    _refuse_known(tx, [event.id for event in told])
    applying.create(tx, [(event, tx.tell(event).time_us) for event in told])
    return told


def _refuse_known(tx: Transaction, ids: Sequence[str]) -> None:
    """Raise AlreadyExists for the first id that there is, or that is given twice."""
    known = {row[0] for row in by_keys(tx, "SELECT id FROM entities WHERE id IN ({})", ids)}
    for ident in ids:
        if ident in known:
            raise AlreadyExists(
                f"there is an entity {ident!r}",
                reason="entity_exists",
                id=ident,
                hint="state:entity:update changes it",
            )
        known.add(ident)


def _tell(tx: Transaction, told: Told) -> None:
    applying.apply(tx, told, tx.tell(told).time_us)


def _ends(tx: Transaction, entity: EntityRow) -> Iterator[RelationshipDeleted]:
    sql = (
        "SELECT r.type, s.id, t.id FROM (SELECT number, type, source, target FROM relationships "
        "WHERE source = ?1 UNION SELECT number, type, source, target FROM relationships WHERE target = ?1 "
        "LIMIT ?2) r JOIN entities s ON s.number = r.source JOIN entities t ON t.number = r.target "
        "ORDER BY r.number"
    )
    for kind, source, target in tx.execute(sql, (entity.number, MAX_ENDED + 1)):
        yield RelationshipDeleted(type=kind, from_=source, to=target)


def _expect(entity: EntityRow, version: int | None) -> None:
    if version not in {None, entity.version}:
        raise FailedPrecondition(
            f"entity {entity.id!r} is at version {entity.version}, not {version}",
            reason="wrong_version",
            expected=version,
            actual=entity.version,
        )


def _check(values: Mapping[str, Value], whose: str) -> None:
    if len(values) > MAX_PROPERTIES:
        raise ResourceExhausted(
            f"{len(values)} properties of {whose}, of {MAX_PROPERTIES}",
            reason="too_many_properties", limit=MAX_PROPERTIES, retryable=False,
        )  # fmt: skip
    total = size(values)
    if total > MAX_BYTES:
        raise ResourceExhausted(
            f"the properties of {whose} have {total} bytes, of {MAX_BYTES}",
            reason="too_large", limit=MAX_BYTES, retryable=False,
            hint="keep large data in a blob, and its reference here",
        )  # fmt: skip
