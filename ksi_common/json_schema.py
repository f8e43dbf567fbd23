"""From JSON Schema to classes: what a client in any language declares becomes an event as any other.

What is understood: types, ``properties``, ``required``, ``default``, ``enum``, ``const``, ``items``,
``anyOf``, ``oneOf``, ``$ref`` into ``$defs``, ``additionalProperties``, and the limits of text, numbers and
lists. What is not understood is not checked here, and is the handler's own affair.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, JsonValue, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from ksi_common.errors import InvalidArgument
from ksi_common.messages import Message, Request, Stream

Schema = Mapping[str, Any]

MAX_DEPTH: Final = 16


class AnyData(Message):
    """An object of which nothing is declared."""

    model_config = ConfigDict(extra="allow")


def event_class(
    event: str,
    schema: Schema,
    reply: Schema | None,
    *,
    kind: Literal["request", "stream"],
    summary: str,
    **keywords: Any,
) -> type[Message]:
    """Make the class of an event; ``keywords``: those of its class. Raise InvalidArgument."""
    answer = AnyData if reply is None else message_class(_name(event, "Reply"), reply)
    base: Any = Request[answer] if kind == "request" else Stream[answer]  # type: ignore[valid-type]
    return _built(
        event,
        lambda: create_model(
            _name(event, ""),
            __base__=base,
            __doc__=summary,
            __cls_kwargs__={"event": event, **keywords},
            **_fields(schema, _Walk(schema)),
        ),
    )


def message_class(name: str, schema: Schema) -> type[Message]:
    """Make the class of an object; unknown fields are passed over, as in all replies."""
    return _built(name, lambda: create_model(name, __base__=Message, **_fields(schema, _Walk(schema))))


def defaults_of(schema: Schema) -> Mapping[str, Any]:
    """Give the defaults of an object's own fields."""
    properties = schema.get("properties", {})
    return {name: field["default"] for name, field in properties.items() if "default" in _object(field)}


def _built(name: str, make: Callable[[], Any]) -> type[Message]:
    try:
        made: type[Message] = make()
        made.model_rebuild(force=True)
    except InvalidArgument:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, PydanticUserError, SchemaError) as error:
        said = str(error).partition("\n")[0]
        raise InvalidArgument(f"the schema of {name} cannot be used: {said}", reason="bad_schema") from error
    return made


class _Walk:
    """Where we are in a schema: what it defines, and how deep."""

    def __init__(self, root: Schema, depth: int = 0, within: tuple[str, ...] = ()) -> None:
        self.root = root
        self.depth = depth
        self.within = within

    def deeper(self, reference: str | None = None) -> "_Walk":
        if self.depth >= MAX_DEPTH:
            raise InvalidArgument(f"the schema is more than {MAX_DEPTH} deep", reason="bad_schema")
        within = self.within if reference is None else (*self.within, reference)
        return _Walk(self.root, self.depth + 1, within)

    def find(self, reference: str) -> Schema:
        found: Any = self.root
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        return _object(found)


def _fields(schema: Schema, walk: _Walk) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise InvalidArgument("the schema must be that of an object", reason="bad_schema")
    required = schema.get("required", ())
    fields: dict[str, Any] = {}
    for number, (name, field) in enumerate(schema.get("properties", {}).items()):
        kind = _type(_object(field), walk.deeper())
        described: dict[str, Any] = {"description": _object(field).get("description"), "alias": name}
        if "examples" in _object(field):
            described["examples"] = list(field["examples"])
        if name in required:
            fields[f"f{number}"] = (kind, Field(**described))
        else:
            default = _object(field).get("default")
            fields[f"f{number}"] = (kind if default is not None else kind | None, Field(default, **described))
    return fields


def _type(schema: Schema, walk: _Walk) -> Any:
    if "$ref" in schema:
        reference = str(schema["$ref"])
        return JsonValue if reference in walk.within else _type(walk.find(reference), walk.deeper(reference))
    if "const" in schema:
        return _literal([schema["const"]])
    if "enum" in schema:
        return _literal(schema["enum"])
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return _union([_type(_object(option), walk.deeper()) for option in options])
    kind = schema.get("type")
    if isinstance(kind, list):
        return _union([_type({**schema, "type": each}, walk.deeper()) for each in kind])
    make = _TYPES.get(str(kind))
    return JsonValue if make is None else make(schema, walk)


def _literal(values: Sequence[Any]) -> Any:
    plain = all(isinstance(value, str | int | bool | None) for value in values)
    return Literal[tuple(values)] if plain and values else JsonValue


def _union(kinds: Sequence[Any]) -> Any:
    return JsonValue if any(kind is JsonValue for kind in kinds) else reduce(or_, kinds)


def _text(schema: Schema, _: _Walk) -> Any:
    limits = _limits(schema, {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"})
    return Annotated[str, Field(**limits)] if limits else str


_NUMBER: Final = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
}


def _integer(schema: Schema, _: _Walk) -> Any:
    limits = _limits(schema, _NUMBER)
    return Annotated[int, Field(**limits)] if limits else int


def _number(schema: Schema, walk: _Walk) -> Any:
    limits = _limits(schema, _NUMBER)
    return _integer(schema, walk) | (Annotated[float, Field(**limits)] if limits else float)


def _array(schema: Schema, walk: _Walk) -> Any:
    item = _type(_object(schema.get("items", {})), walk.deeper())
    limits = _limits(schema, {"minItems": "min_length", "maxItems": "max_length"})
    kind: Any = list[item]  # type: ignore[valid-type]  # made at run time
    return Annotated[kind, Field(**limits)] if limits else kind


def _mapping(schema: Schema, walk: _Walk) -> Any:
    others = schema.get("additionalProperties", True)
    if schema.get("properties"):
        config = ConfigDict(extra="forbid" if others is False else "allow")
        base = create_model("Base", __base__=Message)
        base.model_config = config
        return create_model(str(schema.get("title", "Object")), __base__=base, **_fields(schema, walk))
    return dict[str, _type(_object(others), walk.deeper())]  # type: ignore[misc]  # made at run time


_TYPES: Final[Mapping[str, Callable[[Schema, _Walk], Any]]] = {
    "string": _text,
    "integer": _integer,
    "number": _number,
    "boolean": lambda _, __: bool,
    "null": lambda _, __: type(None),
    "array": _array,
    "object": _mapping,
}


def _limits(schema: Schema, names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: schema[theirs] for theirs, ours in names.items() if theirs in schema}


def _object(schema: Any) -> Schema:
    """``true`` is a schema, too: anything."""
    if isinstance(schema, Mapping):
        return schema
    if isinstance(schema, bool):
        return {}
    raise InvalidArgument(f"{schema!r} is no schema", reason="bad_schema")


def _name(event: str, suffix: str) -> str:
    return "".join(part.title() for part in event.replace(":", "_").split("_")) + suffix
