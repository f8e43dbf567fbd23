"""Values of properties, as rows have them: a kind, and an integer, a real or a text."""

from collections.abc import Iterator, Mapping
from typing import Final

import orjson

from ksi_common.events.properties import Value

MAX_BYTES: Final = 512 * 1024
"""Of all properties of one entity: so that it fits into a reply, and a page holds two."""
_OVERHEAD: Final = 16


def to_row(value: Value) -> tuple[str, int | float | str]:
    """Give the kind and the column of a value."""
    if value is None:
        return "null", 0
    if isinstance(value, bool):
        return "boolean", int(value)
    return ("text" if isinstance(value, str) else "number"), value


def from_row(kind: str, value: int | float | str) -> Value:
    """Give the value of a row."""
    if kind == "null":
        return None
    return bool(value) if kind == "boolean" else value


def same(one: Value, other: Value) -> bool:
    """Tell whether two values are one: 1, 1.0 and true are three, and so are 0.0 and -0.0 two."""
    return type(one) is type(other) and repr(one) == repr(other)


def size(properties: Mapping[str, Value]) -> int:
    """Give the bytes that properties take in a reply, about."""
    return sum(_sizes(properties))


def _sizes(properties: Mapping[str, Value]) -> Iterator[int]:
    for name, value in properties.items():
        yield len(name) + _OVERHEAD + (len(orjson.dumps(value)) if isinstance(value, str) else 0)
