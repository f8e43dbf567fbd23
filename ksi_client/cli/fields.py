"""Read an event's data from words: ``key=text``, ``key:=json`` and ``-`` for an object on stdin."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from ksi_client.cli.safety import one_line
from ksi_common.errors import InvalidArgument
from ksi_common.records import record
from ksi_common.strict_json import loads

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}

Schema = Mapping[str, Any]


@record
class Words:
    """What the words say, before the types of the event are known."""

    given: Mapping[str, Any]
    """From stdin and ``key:=json``."""
    texts: Mapping[str, Sequence[str]]
    """From ``key=text``; a key may be given several times, for a list."""

    def data(self, schema: Schema) -> dict[str, Any]:
        """Give the data: a text is a string unless ``schema`` (of the event's data) takes none there."""
        properties = schema.get("properties", {})
        typed = {
            key: typed_value(key, texts, properties.get(key, {}), schema) for key, texts in self.texts.items()
        }
        return {**self.given, **typed}


def read_words(words: Sequence[str], stdin: Callable[[], bytes]) -> Words:
    """Take words apart; raise a usage error that names the one that is wrong."""
    given: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if word == "-":
            given.update(_object(stdin()))
        elif not equals or key in ("", ":"):
            raise click.UsageError(f"{word!r} is neither key=text nor key:=json nor - (an object on stdin)")
        elif key.endswith(":"):
            given[key[:-1]] = _json(_bytes(text), one_line(word))
        else:
            texts.setdefault(key, []).append(text)
    return Words(given, texts)


def typed_value(key: str, texts: Sequence[str], schema: Schema, root: Schema) -> Any:
    """Give the value that ``schema`` takes: the text itself wherever it takes text."""
    kinds = alternatives(schema, root)
    if len(texts) > 1:
        if kinds and not any(kind.get("type") == "array" for kind in kinds):
            raise click.UsageError(f"{key} is given {len(texts)} times")
        return list(texts)
    (text,) = texts
    if not kinds or any(_takes_text(kind, text) for kind in kinds):
        return text
    try:
        value = loads(_bytes(text))
    except InvalidArgument:
        value = text
    types = [kind.get("type", "") for kind in kinds]
    if any(_is_of(value, kind) for kind in types):
        return value
    return [text] if "array" in types else text


def alternatives(schema: Schema, root: Schema) -> list[Schema]:
    """List the plain schemas that ``schema`` offers; none where it takes anything."""
    if "$ref" in schema:
        schema = root.get("$defs", {}).get(schema["$ref"].rpartition("/")[2], {})
    offered = [branch for word in ("anyOf", "oneOf") for branch in schema.get(word, ())]
    if offered:
        kinds = [alternatives(branch, root) for branch in offered]
        return [] if [] in kinds else [kind for branch in kinds for kind in branch]
    return [schema] if "type" in schema or "enum" in schema or "const" in schema else []


def _takes_text(kind: Schema, text: str) -> bool:
    if "enum" in kind or "const" in kind:
        return text in (*kind.get("enum", ()), kind.get("const"))
    return kind.get("type") == "string"


def _is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES.get(kind, ()))


def _bytes(argument: str) -> bytes:
    """Give an argument as it was typed: it need not be UTF-8."""
    return argument.encode(errors="surrogateescape")


def _object(text: bytes) -> dict[str, Any]:
    value = _json(text, "stdin")
    if not isinstance(value, dict):
        raise click.UsageError("stdin must be a JSON object")
    return value


def _json(text: bytes, where: str) -> Any:
    try:
        return loads(text)
    except InvalidArgument as error:
        raise click.UsageError(f"{where}: {error.message}") from None
