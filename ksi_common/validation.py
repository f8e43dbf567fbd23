"""From JSON to a message, once, at the edge; and what to say where that fails."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ksi_common.errors import InvalidArgument
from ksi_common.guessing import nearest
from ksi_common.ids import NAME_PATTERN
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
    error: ValidationError, cls: type[BaseModel], event: str, data: Mapping[str, Any] | None = None
) -> InvalidArgument:
    """Say what is wrong with the first field that is, and list the others in ``details.problems``.

    ``data``: what was read, where it is at hand; paths are then of places in it.
    """
    found = _ordered(
        [(each, _path(each, data)) for each in error.errors(include_url=False, include_input=False)]
    )
    problems, fields = [problem for problem, _ in found], [path for _, path in found[:20]]
    texts = [_describe(problem, path, cls, event) for problem, path in found[:20]]
    message, hint = texts[0]
    return InvalidArgument(
        message,
        hint=hint or f"system:help {{event: {event}}} shows its fields",
        reason=_REASONS.get(problems[0]["type"], "invalid_field"),
        field=fields[0],
        problems=[{"field": field, "message": text} for field, (text, _) in zip(fields, texts, strict=True)],
    )


def _ordered(found: Sequence[tuple[ErrorDetails, str]]) -> Sequence[tuple[ErrorDetails, str]]:
    """Put fields that are unknown first: a misspelt one is missing, too.

    Of a union, one kind may have the field that another does not: what is wrong with it there is meant.
    """
    unknown = {path for problem, path in found if problem["type"] == "extra_forbidden"}
    known = {path for problem, path in found if problem["type"] != "extra_forbidden"} & unknown
    kept = [each for each in found if each[0]["type"] != "extra_forbidden" or each[1] not in known]
    return sorted(kept, key=lambda each: each[1] not in unknown)


_PATTERNS = {
    EVENT_PATTERN: (
        "an event is called namespace:name, in small letters, digits and underscores",
        "system:discover lists what there is",
    ),
    NAME_PATTERN: (
        "a name has 1 to 128 letters, digits, '.', '_' and '-', and begins with a letter or digit",
        None,
    ),
}
"""What the patterns that many fields share say in words, and what helps."""

_REASONS = {"extra_forbidden": "unknown_field", "missing": "missing"}


def _describe(problem: ErrorDetails, path: str, cls: type[BaseModel], event: str) -> tuple[str, str | None]:
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


def _path(problem: ErrorDetails, data: Mapping[str, Any] | None) -> str:
    """Name a place, without what pydantic adds of its own: which kind of a union it is, that it is a key."""
    parts = problem["loc"] if data is None else _places(problem, data)
    return ".".join(str(part)[:128] for part in parts)


def _places(problem: ErrorDetails, data: Mapping[str, Any]) -> Iterator[int | str]:
    found: Any = data
    *_, last = problem["loc"] or (None,)
    for part in problem["loc"]:
        try:
            found = found[part]
        except (IndexError, KeyError, TypeError):
            if problem["type"] != "missing" or part is not last:
                continue
        yield part
