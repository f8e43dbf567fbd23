"""``state:entity:*``, ``state:relationship:*``: things with typed properties, and how they relate."""

from ksi_graph.handlers import (
    bulk_create_entities,
    count,
    create_entity,
    create_relationship,
    delete_entity,
    delete_relationship,
    get_entity,
    ksi_migrations,
    query_entities,
    query_relationships,
    traverse,
    update_entity,
)
from ksi_graph.rebuilding import rebuild_graph

__all__ = [
    "bulk_create_entities",
    "count",
    "create_entity",
    "create_relationship",
    "delete_entity",
    "delete_relationship",
    "get_entity",
    "ksi_migrations",
    "query_entities",
    "query_relationships",
    "rebuild_graph",
    "traverse",
    "update_entity",
]
