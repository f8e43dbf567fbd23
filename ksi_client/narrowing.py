"""What a change of a JSON Schema takes away from those who write, or read, what it describes."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

Schema = Mapping[str, Any]

_DEEPEST: Final = 12
"""Fields within fields: some schemas hold themselves."""
_WIDER: Final = {"integer": "number"}
_AT_MOST: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_AT_LEAST: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems")


def broken_for_writers(old: Schema, new: Schema, path: str = "") -> Iterator[str]:
    """Name what could be sent, and cannot be any more."""
    if path.count(".") >= _DEEPEST:
        return
    for name, field in old.get("properties", {}).items():
        where = f"{path}.{name}".lstrip(".")
        if name not in new.get("properties", {}):
            yield f"{where} is gone"
            continue
        now = new["properties"][name]
        before, after = _resolve(field, old), _resolve(now, new)
        taken = _values(after)
        for kind, value in sorted(_values(before)):
            if taken.isdisjoint({(kind, value), (kind, ""), (_WIDER.get(kind, "any"), ""), ("any", "")}):
                yield f"{where} no longer takes {value or kind}"
        lenient, strict = _single(before), _single(after)
        for kind in sorted(lenient.keys() & strict.keys()):
            yield from _tightened(where, lenient[kind], strict[kind])
        yield from broken_for_writers(_inside(field, old), _inside(now, new), where)
    for name in sorted({*new.get("required", ())} - {*old.get("required", ())}):
        yield f"{path}.{name} is required now".lstrip(".")


def broken_for_readers(old: Schema, new: Schema, path: str = "") -> Iterator[str]:
    """Name what could be relied on in an answer, and cannot be any more."""
    if path.count(".") >= _DEEPEST:
        return
    for name, field in old.get("properties", {}).items():
        where = f"{path}.{name}".lstrip(".")
        if name not in new.get("properties", {}):
            yield f"{where} is gone"
            continue
        now = new["properties"][name]
        known = _kinds(_resolve(field, old))
        kinds = {kind for kind in _kinds(_resolve(now, new)) if known.isdisjoint({kind, _WIDER.get(kind)})}
        if kinds and "any" not in known:
            yield f"{where} may be {', '.join(sorted(kinds))} now"
        yield from broken_for_readers(_inside(field, old), _inside(now, new), where)
    for name in sorted({*old.get("required", ())} - {*new.get("required", ())}):
        yield f"{path}.{name} may be missing now".lstrip(".")


def _resolve(field: Schema, root: Schema) -> list[Schema]:
    """List the alternatives of a field, each with its definition in place."""
    if "$ref" in field:
        name = str(field["$ref"]).rpartition("/")[2]
        return _resolve(root.get("$defs", {}).get(name, {}), root)
    if "anyOf" in field:
        return [one for option in field["anyOf"] for one in _resolve(option, root)]
    return [field]


def _inside(field: Schema, root: Schema) -> Schema:
    """Give the object that a field holds, alone or in a list; nothing where it holds none."""
    for one in _resolve(field, root):
        if "properties" in one:
            return {**one, "$defs": root.get("$defs", {})}
        if "items" in one:
            return _inside(one["items"], root)
    return {}


def _kinds(alternatives: list[Schema]) -> set[str]:
    return {str(one.get("type", "any")) for one in alternatives}


def _single(alternatives: list[Schema]) -> dict[str, Schema]:
    """Give the alternative of each type; of several of one type, which may share what it takes, none."""
    kinds = [str(one.get("type", "any")) for one in alternatives]
    return {kind: one for kind, one in zip(kinds, alternatives, strict=True) if kinds.count(kind) == 1}


def _values(alternatives: list[Schema]) -> set[tuple[str, str]]:
    """List what is taken: a type and, where only constants of it are, each of them."""
    named: set[tuple[str, str]] = set()
    for one in alternatives:
        constants = one.get("enum", [one["const"]] if "const" in one else [])
        named |= {(str(one.get("type", "any")), repr(value)) for value in constants}
        if not constants:
            named.add((str(one.get("type", "any")), ""))
    return named


def _tightened(where: str, old: Schema, new: Schema) -> Iterator[str]:
    for key in _AT_MOST:
        if key in new and new[key] < old.get(key, float("inf")):
            yield f"{where} has {key} {new[key]} now"
    for key in _AT_LEAST:
        if key in new and new[key] > old.get(key, float("-inf")):
            yield f"{where} has {key} {new[key]} now"
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield f"{where} has another pattern now"
