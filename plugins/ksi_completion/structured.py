"""Answers that are to fit a JSON schema.

The validator is compiled code of another project, and heavy: it is imported with the first schema, in a
thread. It fetches nothing, and its patterns take no longer than what they look at is long.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import orjson

from ksi_common.events.completion import ChatMessage
from ksi_common.strict_json import dumps, loads
from ksi_completion.providers.interface import Answer
from ksi_daemon.plugin import InvalidArgument, JsonValue

REASON: Final = "not_structured"
FIELD: Final = "structured"
"""Of an answer's ``response``: the JSON that fits."""
MAX_PROBLEMS: Final = 10
MAX_PROBLEM: Final = 500
"""Characters of one."""

Schema = Mapping[str, JsonValue]

_FENCED: Final = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n\s*```\s*$", re.DOTALL)


class Unfit(Exception):
    """An answer does not fit its schema; ``problems`` say where."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(f"the answer does not fit response_schema: {'; '.join(problems)}")
        self.problems = problems


async def check_schema(schema: Schema) -> None:
    """Raise InvalidArgument (``bad_schema``) for what is no JSON schema."""
    await asyncio.to_thread(_validator, schema)


async def fit(schema: Schema, answer: Answer) -> JsonValue:
    """Give an answer as the JSON that its schema asks for; raise Unfit."""
    return await asyncio.to_thread(_fit, schema, answer)


def repaired(messages: Sequence[ChatMessage], text: str | None, problems: str) -> Sequence[ChatMessage]:
    """Give the conversation that asks for a better answer. ``text``: of the bad one, where it is known."""
    wish = f"That does not fit: {problems}\nAnswer again, with JSON alone that fits the schema."
    said = [] if text is None else [ChatMessage.model_construct(None, role="assistant", content=text)]
    return [*messages, *said, ChatMessage.model_construct(None, role="user", content=wish)]


def _fit(schema: Schema, answer: Answer) -> JsonValue:
    value = answer.structured
    if value is None:
        value = _parsed(answer.text)
    _check_events_take(value)
    problems = []
    for error in _validator(schema).iter_errors(value):
        place = "/".join(map(str, error.instance_path))
        problems.append(f"{place}: {error.message}"[:MAX_PROBLEM] if place else error.message[:MAX_PROBLEM])
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise Unfit(problems)
    return value


def _check_events_take(value: JsonValue) -> None:
    """Raise Unfit for what an event cannot have: deeper, wider, or with larger integers than KSI reads."""
    try:
        loads(dumps({FIELD: value}))
    except (InvalidArgument, TypeError) as error:
        raise Unfit([f"it is no JSON that KSI takes: {error}"]) from None


def _parsed(text: str) -> JsonValue:
    """Read JSON that stands alone, or alone within a fence, as models like to put it."""
    fenced = _FENCED.match(text)
    try:
        value: JsonValue = orjson.loads(fenced[1] if fenced else text)
    except orjson.JSONDecodeError as error:
        raise Unfit([f"it is no JSON: {error}"]) from None
    return value


def _validator(schema: Schema) -> Any:
    jsonschema_rs = import_module("jsonschema_rs")
    try:
        return jsonschema_rs.validator_for(
            dict(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except ValueError as error:  # its ValidationError and ReferencingError are some
        message = str(getattr(error, "message", error))[:MAX_PROBLEM]
        raise InvalidArgument(f"response_schema is no JSON schema: {message}", reason="bad_schema") from None
