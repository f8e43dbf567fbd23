"""Cursors: a position in one log, opaque to clients."""

from ksi_common.errors import InvalidArgument
from ksi_common.records import record


@record
class Cursor:
    """After ``seq`` of the log ``log_id``."""

    log_id: str
    seq: int

    def __str__(self) -> str:
        return f"{self.log_id}-{self.seq}"


def parse_cursor(text: str) -> Cursor:
    """Read a cursor; raise InvalidArgument where it is none."""
    log_id, dash, seq = text.partition("-")
    if not (dash and log_id.isalnum() and seq.isascii() and seq.isdigit() and len(seq) <= 16):
        raise InvalidArgument(
            f"{text[:64]!r} is no cursor", reason="bad_cursor", hint="send one as a frame or a reply gave it"
        )
    return Cursor(log_id, int(seq))
