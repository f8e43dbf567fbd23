"""Where a page ended, opaque to clients: the next one begins after that row, whatever happened to it."""

import base64
import binascii

import orjson

from ksi_common.records import record
from ksi_daemon.plugin import InvalidArgument


@record
class Position:
    """A row by its number, and by the property that it is ordered by, where it has it."""

    number: int
    kind: str | None = None
    value: int | float | str | None = None


def render(position: Position, *, order: str) -> str:
    """Make the cursor of a position; ``order``: what the rows were ordered by."""
    data = orjson.dumps([order, position.number, position.kind, position.value])
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def parse(text: str | None, *, order: str) -> Position | None:
    """Read a cursor; raise InvalidArgument where it is none, or of another order."""
    if text is None:
        return None
    try:
        data = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        said, number, kind, value = data
    except (ValueError, TypeError, binascii.Error):
        raise _refusal(text) from None
    position = Position(number, kind, value)
    if said != order or not _is_position(position):
        raise _refusal(text)
    return position


def _is_position(position: Position) -> bool:
    if type(position.number) is not int or not 0 <= position.number < 2**63:
        return False
    if position.kind is None:
        return position.value is None
    if isinstance(position.value, int) and not -(2**63) <= position.value < 2**63:
        return False  # no column has it
    return isinstance(position.kind, str) and isinstance(position.value, int | float | str)


def _refusal(text: str) -> InvalidArgument:
    return InvalidArgument(
        f"{text[:64]!r} is no cursor of this query",
        reason="bad_cursor",
        field="cursor",
        hint="send one as the page before gave it, with the same order_by and descending",
    )
