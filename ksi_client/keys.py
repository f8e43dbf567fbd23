"""What lets a request be sent again: an idempotency key, or ids for the events that it tells."""

import os
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from ksi_common.frames import Call


def key_source() -> Callable[[], str]:
    """Make a source of keys: hex digits of the time of start (ms), 40 random bits, and a counter.

    Keys of one source sort nearly in the order made, so that they are neighbours in the daemon's index. Each
    client has a source of its own, and begins anew in a process that is forked: a key is never made twice.
    """
    numbers = count(1)
    made_in, prefix = 0, ""

    def new_key() -> str:
        nonlocal made_in, prefix
        if made_in != os.getpid():
            prefix = f"{time.time_ns() // 1_000_000:011x}{os.urandom(5).hex()}"
            made_in = os.getpid()
        return f"{prefix}{next(numbers):x}"

    return new_key


def make_repeatable(call: Call, key: str) -> bool:
    """Give ``call`` what lets it be sent again, and tell whether it may.

    Events that are told get ids, which make them stored once and cost the daemon nothing; others get the key.
    What is ephemeral is for those who listen now, and has nothing that could tell it from its repetition.
    """
    data = call.data
    match call.event, data:
        case "event:publish", {"ephemeral": True}:
            return False
        case "event:publish", _:
            call.data = _with_id(data, key)
        case "event:append", {"events": [*events]}:
            call.data = {**data, "events": _with_ids(events, key)}
        case "event:append_many", {"appends": [*appends]}:
            call.data = {**data, "appends": [_append(one, f"{key}-{n}") for n, one in enumerate(appends)]}
        case _:
            call.idempotency_key = key
    return True


def _append(one: Any, key: str) -> Any:
    match one:
        case {"events": [*events]}:
            return {**one, "events": _with_ids(events, key)}
    return one


def _with_ids(events: list[Any], key: str) -> list[Any]:
    return [_with_id(event, f"{key}-{number}") for number, event in enumerate(events)]


def _with_id(event: Any, ident: str) -> Any:
    if not isinstance(event, Mapping) or event.get("event_id") is not None:
        return event
    return {**event, "event_id": ident}
