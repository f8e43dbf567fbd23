"""``state:entity:*``, ``state:relationship:*``: things with typed properties, and how they relate."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ksi_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from ksi_common.events.properties import MAX_PROPERTIES, MAX_TEXT, Properties, PropertyValue, Where
from ksi_common.events.types import Name
from ksi_common.messages import Message, Notification, Request

MAX_CREATED = 1000
"""Entities of one ``bulk_create``."""
MAX_DEPTH = 10

Version = Annotated[int, Field(ge=1)]
PageCursor = Annotated[str, StringConstraints(max_length=4 * MAX_TEXT)]
Direction = Literal["outgoing", "incoming", "both"]


class Entity(Message):
    """A thing. Its properties come in the order of their names."""

    id: str
    type: str
    properties: Properties
    version: int
    """1 when created, one more with each change."""
    created_at: str
    updated_at: str


class EntityStored(Message):
    """``unchanged``: it was so already, and nothing is told."""

    status: Literal["created", "updated", "unchanged"]
    id: str
    type: str
    version: int


class NewEntity(Message):
    """An entity to be created."""

    type: Name = Field(description="What kind of thing it is.", examples=["agent"])
    id: Name | None = Field(None, description="What it is called, among all entities; default: a new id.")
    properties: Properties = Field(default_factory=dict, description="What is known of it.")


class CreateEntity(
    Request[EntityStored], event="state:entity:create", raises=(AlreadyExists, ResourceExhausted)
):
    """Create an entity: a thing with a type, an id and typed properties."""

    type: Name = Field(description="What kind of thing it is.", examples=["agent"])
    id: Name | None = Field(None, description="What it is called, among all entities; default: a new id.")
    properties: Properties = Field(
        default_factory=dict, description="What is known of it: texts, numbers, true, false or null by name."
    )


class EntitiesStored(Message):
    """The ids, in the order sent."""

    status: Literal["created"] = "created"
    ids: list[str]
    count: int


class BulkCreateEntities(
    Request[EntitiesStored], event="state:entity:bulk_create", raises=(AlreadyExists, ResourceExhausted)
):
    """Create entities, all or none."""

    entities: Annotated[list[NewEntity], Field(min_length=1, max_length=MAX_CREATED)] = Field(
        description="In order.", examples=[[{"type": "agent", "properties": {"status": "idle"}}]]
    )


class GetEntity(Request[Entity], event="state:entity:get", safe=True, raises=(NotFound,)):
    """Read one entity."""

    id: Name = Field(description="Which one.", examples=["no-such-entity"])


class UpdateEntity(
    Request[EntityStored],
    event="state:entity:update",
    raises=(NotFound, FailedPrecondition, ResourceExhausted),
):
    """Change properties of an entity; those that are not named stay."""

    id: Name = Field(description="Which one.", examples=["no-such-entity"])
    properties: Properties = Field(default_factory=dict, description="What is to be set; null is a value.")
    remove: Annotated[list[Name], Field(max_length=MAX_PROPERTIES)] = Field(
        default_factory=list, description="Properties to be removed, if they are there."
    )
    expected_version: Version | None = Field(
        None, description="Change it only if it is at this version; default: whatever it is at."
    )

    @model_validator(mode="after")
    def _sets_or_removes(self) -> Self:
        both = sorted(set(self.remove) & self.properties.keys())
        if both:
            raise ValueError(f"{both[0]} is to be set and to be removed")
        return self


class EntityGone(Message):
    """It is deleted, and so are its relationships."""

    status: Literal["deleted"] = "deleted"
    id: str
    type: str
    relationships_deleted: int


class DeleteEntity(Request[EntityGone], event="state:entity:delete", raises=(NotFound, FailedPrecondition)):
    """Delete an entity and every relationship from and to it."""

    id: Name = Field(description="Which one.", examples=["no-such-entity"])
    expected_version: Version | None = Field(
        None, description="Delete it only if it is at this version; default: whatever it is at."
    )


class Entities(Message):
    """A page of entities."""

    entities: list[Entity]
    count: int
    """How many entities this reply has."""
    next: str | None = None
    """Give it as ``cursor`` to read on; None at the end."""


class QueryEntities(Request[Entities], event="state:entity:query", safe=True, raises=(InvalidArgument,)):
    """Find entities by type and by what their properties are."""

    type: Name | None = Field(None, description="Of this type only.")
    where: Where = Field(
        default_factory=dict,
        description="By property: the value that it must have, or conditions like {gte: 18}. All must hold.",
        examples=[{"status": "idle", "score": {"gte": 10}}],
    )
    order_by: Name | None = Field(
        None,
        description=(
            "A property: false, true, null, numbers, texts; those without it last. "
            "Default: in the order of creation."
        ),
    )
    descending: bool = Field(default=False, description="The other way round; those without it still last.")
    cursor: PageCursor | None = Field(None, description="After this one: the ``next`` of the page before.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(100, description="Entities at most.")


class Relationship(Message):
    """How one entity relates to another."""

    type: str
    from_: str = Field(validation_alias="from", serialization_alias="from")
    """The entity that it goes out from."""
    to: str
    """The entity that it comes in at."""
    properties: Properties
    created_at: str


class RelationshipStored(Message):
    """It is there now, or not any more."""

    status: Literal["created", "deleted"]
    type: str
    from_: str = Field(validation_alias="from", serialization_alias="from")
    to: str


class CreateRelationship(
    Request[RelationshipStored],
    event="state:relationship:create",
    raises=(NotFound, AlreadyExists, ResourceExhausted),
):
    """Relate one entity to another, or to itself; once for each type."""

    type: Name = Field(description="How they relate.", examples=["knows"])
    from_: Name = Field(
        validation_alias="from",
        serialization_alias="from",
        description="The entity that it goes out from.",
        examples=["no-such-entity"],
    )
    to: Name = Field(description="The entity that it comes in at.", examples=["no-such-entity"])
    properties: Properties = Field(default_factory=dict, description="What is known of it.")


class DeleteRelationship(Request[RelationshipStored], event="state:relationship:delete", raises=(NotFound,)):
    """Delete one relationship; the entities stay."""

    type: Name = Field(description="How they relate.", examples=["knows"])
    from_: Name = Field(
        validation_alias="from",
        serialization_alias="from",
        description="The entity that it goes out from.",
        examples=["no-such-entity"],
    )
    to: Name = Field(description="The entity that it comes in at.", examples=["no-such-entity"])


class Relationships(Message):
    """A page of relationships."""

    relationships: list[Relationship]
    count: int
    """How many relationships this reply has."""
    next: str | None = None
    """Give it as ``cursor`` to read on; None at the end."""


class QueryRelationships(
    Request[Relationships], event="state:relationship:query", safe=True, raises=(InvalidArgument, NotFound)
):
    """Find relationships by type, ends and properties, in the order of creation."""

    type: Name | None = Field(None, description="Of this type only.")
    from_: Name | None = Field(
        None, validation_alias="from", serialization_alias="from", description="From this entity only."
    )
    to: Name | None = Field(None, description="To this entity only.")
    where: Where = Field(
        default_factory=dict,
        description="By property: the value that it must have, or conditions like {gte: 18}. All must hold.",
    )
    cursor: PageCursor | None = Field(None, description="After this one: the ``next`` of the page before.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(100, description="Relationships at most.")


class Step(Message):
    """One relationship of a path, as it was made: a path may go against it."""

    type: str
    from_: str = Field(validation_alias="from", serialization_alias="from")
    to: str


class Reached(Message):
    """An entity, and how far from the start it is: the fewest relationships that lead there."""

    id: str
    type: str
    depth: int
    properties: Properties | None = None
    """Where they were asked for."""
    path: list[Step] | None = None
    """A shortest way there from the start, where paths were asked for."""


class Traversed(Message):
    """What can be reached, the nearest first; the start is not among it."""

    start: str
    entities: list[Reached]
    count: int
    truncated: bool
    """There is more: ``limit``, the size of a reply, or 100,000 relationships looked at ended it."""


class Traverse(Request[Traversed], event="state:graph:traverse", safe=True, raises=(NotFound,)):
    """Find what can be reached from an entity; each entity comes once, circles or not."""

    start: Name = Field(description="The entity to begin at.", examples=["no-such-entity"])
    direction: Direction = Field("outgoing", description="Which way to follow relationships.")
    types: Annotated[list[Name], Field(max_length=64)] = Field(
        default_factory=list, description="Follow relationships of these types only; none: of all."
    )
    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH)] = Field(1, description="Relationships in a row at most.")
    limit: Annotated[int, Field(ge=1, le=10_000)] = Field(1000, description="Entities at most.")
    paths: bool = Field(default=False, description="Say of each entity how it was reached.")
    properties: bool = Field(default=False, description="Give the properties of each entity.")


class ByProperty(Message):
    """Group by the values of a property."""

    property: Name = Field(description="Which one.")


class Group(Message):
    """So many have this type, or this value of the property."""

    value: PropertyValue
    count: int


class Counted(Message):
    """How many there are."""

    total: int
    groups: list[Group] | None = None
    """The largest first, 1,000 at most; where they were asked for."""
    without: int = 0
    """Those that do not have the property that was grouped by."""
    more_groups: bool = False
    """There are smaller groups that this reply has no room for."""


class Count(Request[Counted], event="state:aggregate:count", safe=True):
    """Count entities or relationships, in groups if you like."""

    target: Literal["entities", "relationships"] = Field("entities", description="What to count.")
    type: Name | None = Field(None, description="Of this type only.")
    where: Where = Field(
        default_factory=dict,
        description="By property: the value that it must have, or conditions like {gte: 18}. All must hold.",
    )
    group_by: Literal["type"] | ByProperty | None = Field(
        None, description='By "type", or by a property: {property: status}.'
    )


class EntityCreated(Notification, event="state:entity:created"):
    """An entity was created, at version 1."""

    id: str
    type: str
    properties: Properties


class EntityUpdated(Notification, event="state:entity:updated"):
    """Properties of an entity changed."""

    id: str
    type: str
    version: int
    """That it is at now."""
    properties: Properties
    """Those that were set to another value, or are new."""
    removed: list[str]
    """Names of those that are not there any more."""


class EntityDeleted(Notification, event="state:entity:deleted"):
    """An entity was deleted; the end of each of its relationships was told before."""

    id: str
    type: str
    version: int
    """That it was at."""


class RelationshipCreated(Notification, event="state:relationship:created"):
    """One entity relates to another."""

    type: str
    from_: str = Field(validation_alias="from", serialization_alias="from")
    to: str
    properties: Properties


class RelationshipDeleted(Notification, event="state:relationship:deleted"):
    """One entity does not relate to another any more."""

    type: str
    from_: str = Field(validation_alias="from", serialization_alias="from")
    to: str


Told = EntityCreated | EntityUpdated | EntityDeleted | RelationshipCreated | RelationshipDeleted
"""Everything that is told of the graph: enough to make it again."""


def told(event: str, data: dict[str, Any]) -> Told | None:
    """Read an event of the log; None where it is not of the graph."""
    kind = _TOLD.get(event)
    return kind.model_validate(data) if kind else None


_TOLD: dict[str, type[Told]] = {
    kind.__ksi__.name: kind
    for kind in (EntityCreated, EntityUpdated, EntityDeleted, RelationshipCreated, RelationshipDeleted)
}
