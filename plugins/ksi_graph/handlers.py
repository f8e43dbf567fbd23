"""What is asked of the graph. Units of the one writer change it, hops to a reader look at it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from ksi_common.events.graph import (
    BulkCreateEntities,
    Count,
    Counted,
    CreateEntity,
    CreateRelationship,
    DeleteEntity,
    DeleteRelationship,
    Entities,
    EntitiesStored,
    Entity,
    EntityGone,
    EntityStored,
    GetEntity,
    QueryEntities,
    QueryRelationships,
    Relationships,
    RelationshipStored,
    Traverse,
    Traversed,
    UpdateEntity,
)
from ksi_daemon.plugin import Database, Transaction, handler, hookimpl, scripts
from ksi_graph import changing, reading, traversing
from ksi_graph.tables import Reading

T = TypeVar("T")


@hookimpl
def ksi_migrations() -> Mapping[int, str]:
    """Give the tables of the graph."""
    return scripts("ksi_graph")


@handler
def create_entity(request: CreateEntity, tx: Transaction) -> EntityStored:
    """Create an entity, and tell it."""
    return changing.create(request, tx)


@handler
def bulk_create_entities(request: BulkCreateEntities, tx: Transaction) -> EntitiesStored:
    """Create entities, all or none, and tell each."""
    return changing.bulk_create(request, tx)


@handler
async def get_entity(request: GetEntity, database: Database) -> Entity:
    """Read an entity."""
    return await _read(database, partial(reading.get_entity, request))


@handler
def update_entity(request: UpdateEntity, tx: Transaction) -> EntityStored:
    """Change an entity, and tell what changed."""
    return changing.update(request, tx)


@handler
def delete_entity(request: DeleteEntity, tx: Transaction) -> EntityGone:
    """Delete an entity with its relationships, and tell each."""
    return changing.delete(request, tx)


@handler
async def query_entities(request: QueryEntities, database: Database) -> Entities:
    """Find entities."""
    return await _read(database, partial(reading.query_entities, request))


@handler
def create_relationship(request: CreateRelationship, tx: Transaction) -> RelationshipStored:
    """Relate two entities, and tell it."""
    return changing.relate(request, tx)


@handler
def delete_relationship(request: DeleteRelationship, tx: Transaction) -> RelationshipStored:
    """End a relationship, and tell it."""
    return changing.unrelate(request, tx)


@handler
async def query_relationships(request: QueryRelationships, database: Database) -> Relationships:
    """Find relationships."""
    return await _read(database, partial(reading.query_relationships, request))


@handler
async def traverse(request: Traverse, database: Database) -> Traversed:
    """Find what can be reached."""
    return await _read(database, partial(traversing.traverse, request))


@handler
async def count(request: Count, database: Database) -> Counted:
    """Count."""
    return await _read(database, partial(reading.count, request))


async def _read(database: Database, question: Callable[[Reading], T]) -> T:
    async with database.reader() as reader:
        return await reader.run(question)
