"""What an export begins with where retention has been: versions of streams, and a snapshot of tables.

Each of these lines has a chain over it and those before, and a mark ends them: none can be missing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import orjson

from ksi_daemon.database import Connection
from ksi_daemon.database.apart import tables_of
from ksi_daemon.transfer.lines import BadLine, rendered

STREAM: Final = "ksi:export:stream"
ROW: Final = "ksi:export:row"
KEPT: Final = "ksi:export:kept"
SEQUENCE: Final = "sqlite_sequence"
"""SQLite's own table of the last numbers that tables gave."""
_NOT_OURS: Final = frozenset(("meta", "schema_versions"))

Row = tuple[str, Mapping[str, Any]]
"""A table, and its columns by name."""


@dataclass(slots=True)
class Kept:
    """What stands for the events that retention has taken."""

    seq: int = 0
    """The tables are as the log up to here makes them."""
    streams: list[tuple[str, int]] = field(default_factory=list)
    """The version that each had reached when its last row was deleted."""
    rows: list[Row] = field(default_factory=list)


def kept_lines(log_id: str, time: str, seq: int, content: Iterator[tuple[str, str, Any]]) -> Iterator[bytes]:
    """Render lines of what is kept: of each its type, its subject and its data; and the mark."""
    chain = b""
    for number, (kind, subject, data) in enumerate(content):
        chain = _next(chain, kind, subject, data)
        yield rendered(_attributes(log_id, time, kind, f"{number}", chain, subject) | {"data": data})
    yield rendered(_attributes(log_id, time, KEPT, "end", chain, str(seq)))


def streams_of(log: Connection) -> Iterator[tuple[str, str, Any]]:
    """Give the streams that retention has taken the last row of."""
    for stream, version in log.execute("SELECT stream, version FROM compacted_streams ORDER BY stream"):
        yield STREAM, stream, version


def rows_of(snapshot: Connection) -> Iterator[tuple[str, str, Any]]:
    """Give the rows of a snapshot's tables."""
    names = tables_of(snapshot)
    for table in (*sorted(names - _NOT_OURS), SEQUENCE):
        cursor = snapshot.execute(f"SELECT * FROM {table}")  # noqa: S608 -- names of the file's own
        columns = [column[0] for column in cursor.description]
        for row in cursor:
            yield ROW, table, dict(zip(columns, map(_plain, row), strict=True))


class KeptReader:
    """Takes such lines one after another."""

    def __init__(self) -> None:
        self.kept = Kept()
        self.ended = True
        """Nothing is open: events may follow."""
        self._chain = b""

    def take(self, attributes: Mapping[str, Any], number: int) -> bool:
        """Take a line in; give whether it is one of these. Raises BadLine."""
        kind = attributes["type"]
        if kind not in {STREAM, ROW, KEPT}:
            if not self.ended:
                raise BadLine(number, f"{KEPT} is missing before it")
            return False
        try:
            self._take(kind, attributes["subject"], attributes, number)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadLine(number, f"it is no line of {kind}: {error}") from error
        return True

    def _take(self, kind: str, subject: str, attributes: Mapping[str, Any], number: int) -> None:
        if kind != KEPT:
            self._chain = _next(self._chain, kind, subject, attributes["data"])
        if attributes["ksichain"] != self._chain.hex():
            raise BadLine(number, "it does not follow from the lines before")
        self.ended = kind == KEPT
        if kind == STREAM:
            self.kept.streams.append((subject, int(attributes["data"])))
        elif kind == ROW:
            columns = {str(name): _value(value) for name, value in attributes["data"].items()}
            self.kept.rows.append((subject, columns))
        else:
            self.kept.seq = int(subject)


def _attributes(log_id: str, time: str, kind: str, ident: str, chain: bytes, subject: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"{log_id}-{kind.rpartition(':')[2]}-{ident}",
        "source": f"/ksi/{log_id}",
        "type": kind,
        "time": time,
        "subject": subject,
        "ksichain": chain.hex(),
    }


def _next(chain: bytes, kind: str, subject: str, data: object) -> bytes:
    return sha256(chain + orjson.dumps([kind, subject, data])).digest()


def _plain(value: object) -> object:
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _value(value: object) -> object:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
