"""Render requests, and refuse here what the daemon could only refuse without an id, or by hanging up."""

import math
from typing import Final

from ksi_common.errors import InvalidArgument
from ksi_common.frames import Call, ServedAnswer
from ksi_common.protocol import MAX_LINE
from ksi_common.strict_json import loads, non_finite

ID_ROOM: Final = 32
"""Bytes kept free for the id, which is put in when the line is sent."""


def encode(call: Call) -> bytes:
    """Render ``call`` as a line; raise InvalidArgument where it cannot cross the wire unchanged."""
    try:
        line = call.encode()
    except TypeError as error:
        raise InvalidArgument(f"data of {call.event!r} is not JSON: {error}", reason="not_json") from None
    if len(line) > MAX_LINE - ID_ROOM:
        raise InvalidArgument(
            f"data of {call.event!r} has {len(line)} bytes; a request has at most {MAX_LINE - ID_ROOM}",
            reason="too_large",
            limit=MAX_LINE - ID_ROOM,
            hint="put large data into a file and send a reference to it",
        )
    if b"null" in line:
        _refuse_non_finite(call)
    loads(line)
    return line


def encode_answer(answer: ServedAnswer) -> bytes:
    """Render what a client that serves says; raise ValueError or TypeError where no daemon would take it."""
    line = answer.encode()
    if len(line) - 1 > MAX_LINE:
        raise ValueError(f"the answer has {len(line)} bytes; a line has at most {MAX_LINE}")
    try:
        loads(line)
    except InvalidArgument as error:
        raise ValueError(error.message) from None
    return line


def with_id(line: bytes, ident: int) -> bytes:
    """Give the line with an id."""
    return b'{"id":%d,%b' % (ident, line[1:])


def _refuse_non_finite(call: Call) -> None:
    if call.timeout_s is not None and not math.isfinite(call.timeout_s):
        raise InvalidArgument(f"timeout_s of {call.event!r} is {call.timeout_s}", reason="not_finite")
    number = non_finite(call.data)
    if number is not None:
        raise InvalidArgument(f"data of {call.event!r} has a number {number}", reason="not_finite")
