"""From JSON to a message, once, at the edge; and what to say where that fails."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ksi_common.errors import InvalidArgument
from ksi_common.guessing import nearest
from ksi_common.ids import NAME_PATTERN, STREAM_PATTERN
from ksi_common.messages import EVENT_PATTERN, Message, accepted_names, spec_of
from ksi_common.protocol import MAX_DATA
from ksi_common.strict_json import dumps

M = TypeVar("M", bound=Message)


def parser(cls: type[M]) -> Callable[[Mapping[str, Any]], M]:
    """Make the function that reads a request's data: strict JSON types, no unknown field at any depth.

    It raises InvalidArgument with ``field`` (a path), and a guess where a name is nearly right. The model is
    built at the first use: an idle daemon has hundreds that nobody asks for.
    """
    name = spec_of(cls).name

    @cache
    def built() -> tuple[Callable[..., M], M | None]:
        # Messages are frozen: one that says nothing can be shared by all who say nothing.
        empty = _empty(cls)
        return cls.__pydantic_validator__.validate_json, empty

    def parse(data: Mapping[str, Any]) -> M:
        validate, empty = built()
        if not data and empty is not None:
            return empty
        text = dumps(data)
        if len(text) > MAX_DATA:
            raise InvalidArgument(
                f"data of {name} has {len(text)} bytes", reason="too_large", limit=MAX_DATA, field="data"
            )
        try:
            message = validate(text, strict=True, extra="forbid", by_name=False)
        except ValidationError as error:
            raise refusal(error, cls, name, data) from None
        return message

    return parse


def _empty(cls: type[M]) -> M | None:
    """Give the message that says nothing; None where something must be said."""
    try:
        return cls()
    except ValidationError:
        return None


def refusal(
    error: ValidationError, cls: type[BaseModel], event: str, data: Mapping[str, Any]
) -> InvalidArgument:
    """Say what is wrong with the first field that is, and list the others in ``details.problems``."""
    problems = _of_one_kind(error.errors(include_url=False, include_input=False), data)
    problems.sort(
        key=lambda problem: problem["type"] != "extra_forbidden"
    )  # a misspelt field is missing, too
    texts = [_describe(problem, cls, event) for problem in problems[:20]]
    message, hint = texts[0]
    fields = [_path(problem) for problem in problems[:20]]
    return InvalidArgument(
        message,
        hint=hint or f"system:help {{event: {event}}} shows its fields",
        reason=_REASONS.get(problems[0]["type"], "invalid_field"),
        field=fields[0],
        problems=[{"field": field, "message": text} for field, (text, _) in zip(fields, texts, strict=True)],
    )


def _of_one_kind(problems: Sequence[ErrorDetails], data: Mapping[str, Any]) -> list[ErrorDetails]:
    """Keep of a field that may be of several kinds what keeps it from the kind that it is nearest to.

    pydantic tells that of each kind, and puts its own word for the kind after the field's path.
    """
    fields: dict[tuple[int | str, ...], dict[object, list[ErrorDetails]]] = {}
    for number, problem in enumerate(problems):
        path = problem["loc"]
        at = _kind_at(problem, data)
        if at is None:
            fields[(number,)] = {None: [problem]}
        else:
            named: ErrorDetails = {**problem, "loc": path[:at] + path[at + 1 :]}
            fields.setdefault(("", *path[:at]), {}).setdefault(path[at], []).append(named)
    if all(None in kinds for kinds in fields.values()):
        return list(problems)
    kept: list[ErrorDetails] = []
    for field, kinds in fields.items():
        depth = len(field) - 1
        nearest_kind = min(kinds.values(), key=lambda found: max(_distance(one, depth) for one in found))
        if _distance(nearest_kind[0], depth) == _ANOTHER_KIND:
            wanted = dict.fromkeys(
                found[0]["msg"].removeprefix("Input should be ") for found in kinds.values()
            )
            nearest_kind = [{**nearest_kind[0], "msg": f"Input should be {', or '.join(wanted)}"}]
        kept += nearest_kind
    return _of_one_kind(kept, data)


_ANOTHER_KIND = 2


def _kind_at(problem: ErrorDetails, data: Mapping[str, Any]) -> int | None:
    """Find the first part of a path that is none of the data; None: all are, or are missing in it."""
    path, value = problem["loc"], data
    for at, part in enumerate(path):
        try:
            value = value[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return None if problem["type"] == "missing" and at == len(path) - 1 else at
    return None


def _distance(problem: ErrorDetails, depth: int) -> int:
    if len(problem["loc"]) == depth and problem["type"].endswith(("_type", "literal_error")):
        return _ANOTHER_KIND
    return int(problem["type"] in _REASONS)


_PATTERNS = {
    EVENT_PATTERN: (
        "an event is called namespace:name, in small letters, digits and underscores",
        "system:discover lists what there is",
    ),
    NAME_PATTERN: (
        "a name has 1 to 128 letters, digits, '.', '_' and '-', and begins with a letter or digit",
        None,
    ),
    STREAM_PATTERN: (
        "a stream is called category/id: letters, digits, '.', '_' and '-', a letter or digit first",
        None,
    ),
}
"""What the patterns that many fields share say in words, and what helps."""

_REASONS = {"extra_forbidden": "unknown_field", "missing": "missing"}


def _describe(problem: ErrorDetails, cls: type[BaseModel], event: str) -> tuple[str, str | None]:
    path = _path(problem)
    match problem["type"]:
        case "extra_forbidden":
            near = nearest(str(problem["loc"][-1]), _siblings(cls, problem))
            return f'{event} has no field "{path}"', f'did you mean "{near[0]}"?' if near else None
        case "missing":
            return f"{event} needs the field {path}", None
        case "string_pattern_mismatch" if wanted := _PATTERNS.get(problem["ctx"]["pattern"]):
            return f"{path or 'data'}: {wanted[0]}", wanted[1]
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{path or 'data'}: {reason[:1].lower()}{reason[1:]}", None


def _siblings(cls: type[BaseModel], problem: ErrorDetails) -> Sequence[str]:
    if len(problem["loc"]) == 1:
        return accepted_names(cls)
    return ()


def _path(problem: ErrorDetails) -> str:
    return ".".join(str(part)[:128] for part in problem["loc"])
