"""``var/run/head``: how far the log had come, beside the database, so that a lost tail is noticed.

Not synced, and written now and then only: it says what was surely there, not what was not. A record of fixed
size in one write; torn by a loss of power it is no JSON, and says nothing.
"""

import os
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

from ksi_common.errors import InvalidArgument
from ksi_common.records import record
from ksi_common.strict_json import dumps, loads

SIZE: Final = 192
"""Bytes of the record, filled up with blanks."""
EVERY_S: Final = 0.1


@record
class Head:
    """The end of a log."""

    log_id: str
    seq: int
    chain: str
    """Hexadecimal."""


class HeadFile:
    """Write the head after commits, at most every 100 ms. Owned by the writer thread."""

    def __init__(self, path: Path, log_id: str) -> None:
        self._path = path
        self._log_id = log_id
        self._descriptor: int | None = None
        self._written = -1
        self._not_before = 0.0

    def behind(self, seq: int) -> bool:
        """Tell whether it says less than is known."""
        return seq != self._written

    def note(self, seq: int, chain: bytes) -> None:
        """Write the head, unless it was written a moment ago."""
        now = monotonic()
        if now >= self._not_before:
            self._not_before = now + EVERY_S
            self.write(seq, chain)

    def write(self, seq: int, chain: bytes) -> None:
        """Write the head; a disk that refuses is no matter."""
        self._written = seq
        record = dumps({"log_id": self._log_id, "seq": seq, "chain": chain.hex()})
        with suppress(OSError):
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._descriptor, record.ljust(SIZE - 1) + b"\n", 0)

    def close(self) -> None:
        """Close the file; may be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def read_head(path: Path) -> Head | None:
    """Read what was written last; None where that cannot be known."""
    try:
        record = loads(path.read_bytes())
        return Head(str(record["log_id"]), int(record["seq"]), str(record["chain"]))
    except (OSError, InvalidArgument, ValueError, KeyError, TypeError):
        return None
