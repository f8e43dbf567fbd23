"""How the graph is made of the log again: by what made it."""

from ksi_common.events.graph import (
    EntityCreated,
    EntityDeleted,
    EntityUpdated,
    RelationshipCreated,
    RelationshipDeleted,
)
from ksi_daemon.plugin import Tables, rebuilder
from ksi_graph.applying import apply


@rebuilder("entities", "entity_properties", "relationships", "relationship_properties")
def rebuild_graph(
    tables: Tables,
    event: EntityCreated | EntityUpdated | EntityDeleted | RelationshipCreated | RelationshipDeleted,
) -> None:
    """Do what was done when it was told."""
    apply(tables, event, tables.time_us)
