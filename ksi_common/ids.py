"""Identifiers: sortable, unique, and cheap enough to make one per event."""

import re
import secrets
import time
from collections.abc import Callable
from itertools import count

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What may name a thing (session, agent, namespace): never a path, never empty."""

STREAM_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"
"""What may name a stream: ``category/id``."""

_NAME = re.compile(NAME_PATTERN)


def is_name(text: str) -> bool:
    """Tell whether ``text`` may name a thing, and so may become part of a path."""
    return _NAME.fullmatch(text) is not None


def id_source(*, start_ms: int | None = None) -> Callable[[], str]:
    """Make a source of ids: 11 hex digits of start time (ms), 6 random, 9 of a counter.

    Ids of one source sort in the order made, and sources sort by the time they were started.
    A counter costs a twentieth of a UUID; the random part keeps sources apart.
    """
    started = time.time_ns() // 1_000_000 if start_ms is None else start_ms
    prefix = f"{started:011x}{secrets.token_hex(3)}"
    numbers = count(1)

    def new_id() -> str:
        return f"{prefix}{next(numbers):09x}"

    return new_id


new_id = id_source()
"""The source of this process."""
