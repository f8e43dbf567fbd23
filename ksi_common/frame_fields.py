"""Fields of what clients send: what they may be, and what to say where they are not."""

from collections.abc import Mapping
from typing import Any, Final

from ksi_common.errors import InvalidArgument
from ksi_common.frames import Call, FrameId

MAX_ID: Final = 128
"""Characters of an id, and of each of the texts that travel with a call."""

MAX_TIMEOUT_S: Final = 1e9
"""What any longer time is taken for: thirty years, which clocks can still add to what they show."""

_TEXTS: Final = ("correlation_id", "causation_id", "idempotency_key", "traceparent")
_JSON_NAMES: Final = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}


def read_options(call: Call, frame: Mapping[str, Any]) -> None:
    """Take what travels with a call from its frame; raise InvalidArgument."""
    for name in _TEXTS:
        value = frame.get(name)
        if value is None:
            continue
        if type(value) is not str or not 0 < len(value) <= MAX_ID:
            raise wrong_type(name, f"string of 1 to {MAX_ID} characters", value)
        setattr(call, name, value)
    timeout_s = frame.get("timeout_s")
    if timeout_s is not None:
        if type(timeout_s) not in (int, float) or timeout_s <= 0:
            raise wrong_type("timeout_s", "number of seconds above 0", timeout_s)
        call.timeout_s = min(float(timeout_s), MAX_TIMEOUT_S)


def check_id(ident: object) -> None:
    """Raise InvalidArgument where this cannot be an id."""
    if type(ident) is int or (type(ident) is str and len(ident) <= MAX_ID):
        return
    raise wrong_type("id", f"string of at most {MAX_ID} characters or an integer", ident)


def readable_id(frame: Mapping[str, Any]) -> FrameId | None:
    """Give the id of a frame that is wrong otherwise; None where it has none."""
    ident = frame.get("id")
    return ident if type(ident) is int or (type(ident) is str and len(ident) <= MAX_ID) else None


def wrong_type(field: str, wanted: str, value: object) -> InvalidArgument:
    """Say what a field must be and is not; ``field``: empty for the frame itself."""
    article = "an" if wanted[0] in "aeiou" else "a"
    got = _JSON_NAMES.get(type(value), "number")
    if wanted.startswith(got):
        got = f"one of {len(value)}" if isinstance(value, str) else str(value)
    message = f"{field or 'a frame'} must be {article} {wanted}, not {got}"
    return InvalidArgument(message, reason="wrong_type", field=field)
