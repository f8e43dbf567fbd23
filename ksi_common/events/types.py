"""Field types that several namespaces share."""

from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from ksi_common.clock import parse_time
from ksi_common.ids import NAME_PATTERN, STREAM_PATTERN
from ksi_common.messages import EVENT_PATTERN, MAX_EVENT_NAME, is_event_pattern

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""What names a thing: letters, digits, ``.``, ``_``, ``-``; 128 at most; starts with a letter or digit."""

EventName = Annotated[str, StringConstraints(pattern=EVENT_PATTERN, max_length=MAX_EVENT_NAME)]
"""``namespace:name(:name)*`` in snake case."""

StreamName = Annotated[str, StringConstraints(pattern=STREAM_PATTERN, max_length=256)]
"""``category/id``: what versions are counted in."""


def _pattern(text: str) -> str:
    if not is_event_pattern(text):
        raise ValueError(f"{text!r} is no event pattern: a name, or the beginning of one and '*'")
    return text


def _time(text: str) -> str:
    parse_time(text)
    return text


EventPattern = Annotated[str, AfterValidator(_pattern)]
"""An event name, or the beginning of one followed by ``*``."""

Dollars = Annotated[float, AfterValidator(lambda value: round(value, 12))]
"""A sum of prices, without the last digits that adding them up has made."""

Time = Annotated[str, AfterValidator(_time)]
"""RFC 3339 with an offset: 2026-01-31T12:00:00Z."""
