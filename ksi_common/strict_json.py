"""JSON as KSI accepts it: nothing that a second parser would read differently.

orjson refuses NaN, infinities, lone surrogates, bad UTF-8 and byte order marks. Left to us are
integers that it would round (beyond ±2^53), depth, and objects of absurd width.
"""

import math
import re
from typing import Any, Final

import orjson

from ksi_common.errors import InvalidArgument

MAX_DEPTH: Final = 64
MAX_KEYS: Final = 10_000
"""Keys of one object."""
MAX_INTEGER: Final = 2**53

_CLASSES: Final = bytes(
    0x30 if byte in b"0123456789" else 0x7B if byte in b"[{" else 0x3A if byte == 0x3A else 0x20
    for byte in range(256)
)
_SIXTEEN_DIGITS: Final = b"0" * 16
# Possessive, or a string of one mebibyte takes a hundred more for places to come back to.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(-?\d+)(?![\d.eE])|-?\d+[\d.eE+-]*', re.DOTALL)

dumps = orjson.dumps


def loads(text: bytes) -> Any:
    """Parse ``text``; raise InvalidArgument with ``position`` (byte) or ``reason``.

    The common case pays one table look-up per byte; only a text with a run of sixteen digits, many
    brackets or many colons is examined closely.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _malformed(text, error) from None
    shape = text.translate(_CLASSES)
    if _SIXTEEN_DIGITS in shape:
        _refuse_rounded_integers(text)
    if len(text) > MAX_DEPTH and (shape.count(b"{") > MAX_DEPTH or len(text) > MAX_KEYS < shape.count(b":")):
        _refuse_shape(value)
    return value


def _malformed(text: bytes, error: orjson.JSONDecodeError) -> InvalidArgument:
    try:
        text.decode()
    except UnicodeDecodeError as bad:
        return InvalidArgument(
            f"not UTF-8 at byte {bad.start}", reason="not_utf8", position=bad.start, hint="send UTF-8"
        )
    position = len(error.doc[: error.pos].encode(errors="surrogatepass"))
    why = error.msg.partition(": line ")[0]
    if "depth limit" in why:
        return InvalidArgument(f"nested deeper than {MAX_DEPTH}", reason="too_deep", limit=MAX_DEPTH)
    return InvalidArgument(
        f"not JSON at byte {position}: {why}",
        reason="malformed",
        position=position,
        hint='send one JSON object a line, like {"event":"system:health"}',
    )


def _refuse_rounded_integers(text: bytes) -> None:
    for token in _TOKEN.finditer(text):
        digits = token[1]
        if digits is not None and len(digits) >= 16 and not -MAX_INTEGER <= _integer(digits) <= MAX_INTEGER:
            raise InvalidArgument(
                f"integer beyond ±2^53 at byte {token.start()}",
                reason="integer_out_of_range",
                position=token.start(),
                hint="send it as a string",
            )


def _integer(digits: bytes) -> int:
    # Python refuses to read over 4,300 digits; twenty are enough to know that it is too large.
    return int(digits[:20])


def _refuse_shape(value: Any) -> None:
    level = [value]
    depth = 0
    while level:
        depth += 1
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                if len(node) > MAX_KEYS:
                    raise InvalidArgument(
                        f"object of {len(node)} keys", reason="too_many_keys", limit=MAX_KEYS
                    )
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
        level = [node for node in below if isinstance(node, dict | list)]
        if level and depth >= MAX_DEPTH:
            raise InvalidArgument(f"nested deeper than {MAX_DEPTH}", reason="too_deep", limit=MAX_DEPTH)


def non_finite(value: Any) -> float | None:
    """Give a number of ``value`` that JSON does not have: orjson writes null for it. None: there is none."""
    level = [value]
    while level:
        below: list[Any] = []
        for node in level:
            if isinstance(node, float) and not math.isfinite(node):
                return node
            if isinstance(node, dict):
                below.extend(node.values())
            elif isinstance(node, list | tuple):
                below.extend(node)
        level = below
    return None
