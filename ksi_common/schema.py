"""Event classes, described: the discovery document, from which help and examples are made."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ksi_common.events.system import EventHelp, Parameter
from ksi_common.messages import Message, public_name, spec_of


def describe(cls: type[Message], plugin: str, *, remote: bool = False) -> EventHelp:
    """Say everything about an event that its class says."""
    spec = spec_of(cls)
    doc = inspect.getdoc(cls) or ""
    schema = cls.model_json_schema()
    return EventHelp(
        event=spec.name,
        namespace=spec.namespace,
        kind=spec.kind,
        summary=doc.partition("\n")[0],
        description=doc,
        plugin=plugin,
        version=spec.version,
        safe=spec.safe,
        idempotent=spec.idempotent,
        parameters=parameters(cls, schema),
        reply=spec.reply.model_json_schema(mode="serialization") if spec.reply else None,
        schema_=schema,
        errors=[error.code for error in spec.raises],
        examples=[_line(cls, schema)],
        answers=spec.answers,
        deprecated=spec.deprecated,
        remote=remote,
    )


def parameters(cls: type[BaseModel], schema: Mapping[str, Any] | None = None) -> Mapping[str, Parameter]:
    """Describe the fields of a model, by their names on the wire. ``schema``: its own, if at hand."""
    schema = schema or cls.model_json_schema()
    definitions: Mapping[str, Any] = schema.get("$defs", {})
    described = {}
    for name, info in cls.model_fields.items():
        public = public_name(name, info)
        field: Mapping[str, Any] = schema["properties"][public]
        described[public] = Parameter(
            type=type_name(field, definitions),
            required=info.is_required(),
            default=_default(info),
            description=info.description or "",
            allowed_values=_allowed(field),
        )
    return described


def example(cls: type[BaseModel]) -> dict[str, Any]:
    """Give data that the event can be sent with: the class's own example, as JSON Schema has it.

    Where it has none, the first example of each field that needs one.
    """
    return _example_of(cls, cls.model_json_schema())


def _example_of(cls: type[BaseModel], schema: Mapping[str, Any]) -> dict[str, Any]:
    extra = cls.model_config.get("json_schema_extra")
    if (
        isinstance(extra, dict)
        and isinstance(own := extra.get("examples"), list)
        and isinstance(own[0], dict)
    ):
        return own[0]
    data = {}
    for name, info in cls.model_fields.items():
        if info.is_required():
            public = public_name(name, info)
            data[public] = _example(info, schema["properties"][public])
    return data


def type_name(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Name the JSON type of a field, as a person would."""
    if "$ref" in field:
        name = str(field["$ref"]).rpartition("/")[2]
        return type_name(definitions[name], {}) if name != "JsonValue" and name in definitions else "any"
    if "anyOf" in field:
        return " | ".join(dict.fromkeys(type_name(option, definitions) for option in field["anyOf"]))
    if "const" in field or "enum" in field:
        return "string"
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"array of {type_name(field.get('items', {}), definitions)}"
    return kind


def _line(cls: type[Message], schema: Mapping[str, Any]) -> dict[str, Any]:
    spec = spec_of(cls)
    if spec.kind == "notification":  # it cannot be sent, but followed
        return {"event": "event:subscribe", "data": {"patterns": [spec.name]}}
    return {"event": spec.name, "data": _example_of(cls, schema)}


def _default(info: FieldInfo) -> Any:
    if info.is_required():
        return None
    value = info.get_default(call_default_factory=True)
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _allowed(field: Mapping[str, Any]) -> list[Any] | None:
    """List the values that a field may have beside null; None: there are others."""
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    literals = [_literals(option) for option in options]
    return [value for values in literals for value in values] if all(literals) else None


def _literals(option: Mapping[str, Any]) -> Sequence[Any]:
    return [option["const"]] if "const" in option else list(option.get("enum", ()))


_EXAMPLES: Mapping[str, Any] = {
    "string": "example",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "object": {},
}


def _example(info: FieldInfo, field: Mapping[str, Any]) -> Any:
    if info.examples:
        return info.examples[0]
    literals = _allowed(field)
    return literals[0] if literals else _EXAMPLES.get(str(field.get("type")), "example")
