"""Properties of entities and relationships: what they may be, and what may be asked of them."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from ksi_common.events.types import Name
from ksi_common.messages import Message

MAX_PROPERTIES = 256
"""Of one entity or relationship."""
MAX_TEXT = 65_536
"""Characters of one property."""

_EXACT = 2**53


def _flat(value: object) -> object:
    match value:
        case dict():
            raise ValueError("a property holds one value: name an object's fields like address.city")
        case list():
            raise ValueError("a property holds one value: make a list's members entities, and relate to them")
        case int() if not -_EXACT <= value <= _EXACT:
            raise ValueError("an integer beyond ±2^53 is rounded by many: send it as a string")
    return value


Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Integer = Annotated[int, Field(ge=-_EXACT, le=_EXACT)]
Value = bool | Integer | float | Text | None
"""What a property may hold: true, 1, 1.0, "1" and null are five values."""
PropertyValue = Annotated[Value, BeforeValidator(_flat)]
Properties = Annotated[dict[Name, PropertyValue], Field(max_length=MAX_PROPERTIES)]
Comparable = Integer | float | Text


class Condition(Message):
    """What a property must be, in every respect given. Numbers compare with numbers, texts with texts."""

    eq: PropertyValue = Field(None, description="Equal; 1 equals 1.0, and not true or a text.")
    ne: PropertyValue = Field(None, description="Not equal; or there is no such property.")
    lt: Comparable | None = Field(None, description="Less than.")
    lte: Comparable | None = Field(None, description="Less than, or equal.")
    gt: Comparable | None = Field(None, description="Greater than.")
    gte: Comparable | None = Field(None, description="Greater than, or equal.")
    in_: Annotated[list[PropertyValue], Field(max_length=256)] | None = Field(
        None, validation_alias="in", serialization_alias="in", description="Equal to one of these."
    )
    contains: Annotated[str, StringConstraints(max_length=1024)] | None = Field(
        None, description="A text that has this in it, letter by letter."
    )
    exists: bool | None = Field(None, description="There is such a property, or there is none.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("no condition: give eq, ne, lt, lte, gt, gte, in, contains or exists")
        return self


def _meant(value: object) -> str:
    return "condition" if isinstance(value, dict | Condition) else "value"


Wanted = Annotated[
    Annotated[PropertyValue, Tag("value")] | Annotated[Condition, Tag("condition")], Discriminator(_meant)
]
Where = Annotated[dict[Name, Wanted], Field(max_length=16)]
