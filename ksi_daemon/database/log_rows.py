"""Rows of the log, held against their digests: what is damaged is named, never passed on.

A row that cannot be read, or does not say what its digest was made of, becomes a Damage. The others are not
affected: where a page of the file is broken, its rows are looked at one by one.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from ksi_common.envelope import StoredEvent
from ksi_common.records import record
from ksi_daemon import blob_files
from ksi_daemon.database.log_writer import READ, digest_of, from_row

Row = tuple[Any, ...]
Reason = Literal[
    "event_corrupt", "event_missing", "chain_broken", "reference_missing", "reference_corrupt", "compacted"
]

_DAMAGED: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR))
_TEXT_IS_NONE: Final = 0
"""SQLite finds nothing wrong with a text that is no UTF-8; the module does, and gives no code."""
SEQ, ID, KIND, NAME, STREAM, VERSION, DATA, REFERENCE, DIGEST = 0, 1, 2, 3, 4, 5, 11, 12, 13
"""Where a row has what, which begins with the columns ``READ``."""
CHAIN: Final = 14
"""The same, of a page that is read with ``CHAINED``."""
CHAINED: Final = f"{READ}, chain"


@record
class Damage:
    """A position of the log that has no event to show, and why."""

    seq: int
    """0: nobody can tell; it was found missing by its version."""
    event_id: str | None
    reason: Reason
    detail: str
    count: int = 1
    """So many positions, from ``seq`` on."""


class RemovedEvent(StoredEvent):
    """An event whose data retention has removed; the other facts are as they were told."""

    __slots__ = ()


class DamagedRow(Exception):
    """A row that must not be passed on."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(damage.detail)
        self.damage = damage


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether SQLite says that the file is damaged, rather than busy, full or closed."""
    return getattr(error, "sqlite_errorcode", _TEXT_IS_NONE) & 0xFF in {*_DAMAGED, _TEXT_IS_NONE}


def event_of(row: Row, home: Path) -> StoredEvent:
    """Make the event of a row, with its data from wherever that is; raise DamagedRow."""
    try:
        event = from_row(row)
        if row[DATA] is None:
            if row[REFERENCE] is None and event.kind == "request":
                return event
            data = referenced(row, home)
            if data is None:
                return _removed(event)
            event.data = data
        if digest_of(event) == row[DIGEST]:
            return event
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        raise DamagedRow(_corrupt(row, f"it is no event: {error}")) from error
    raise DamagedRow(_corrupt(row, "it does not say what its digest was made of"))


def referenced(row: Row, home: Path) -> bytes | None:
    """Give the data that a row refers to; None where retention removed it; raise DamagedRow."""
    if row[REFERENCE] is None:
        raise DamagedRow(_corrupt(row, "it has lost its data"))
    reference = orjson.loads(row[REFERENCE])
    path = reference.get("path")
    if path is None:
        return None
    try:
        with os.fdopen(blob_files.open_to_read(home, path), "rb") as file:
            data = file.read(reference["length"] + 1)
    except FileNotFoundError as error:
        damage = Damage(row[SEQ], row[ID], "reference_missing", f"{path} is missing")
        raise DamagedRow(damage) from error
    except OSError as error:
        raise DamagedRow(Damage(row[SEQ], row[ID], "reference_corrupt", f"{path}: {error}")) from error
    if hashlib.sha256(data).hexdigest() != reference["sha256"]:
        damage = Damage(row[SEQ], row[ID], "reference_corrupt", f"{path} is not what was stored")
        raise DamagedRow(damage)
    return data


def read_page(
    connection: sqlite3.Connection, after: int, until: int, limit: int, columns: str = READ
) -> Iterator[Row | Damage]:
    """Yield what is at ``after < seq <= until``, in order: each position is a row, or part of a damage."""
    rows = f"SELECT {columns} FROM log WHERE seq"  # noqa: S608
    expected = after + 1
    last = min(until, after + limit)
    cursor = connection.cursor()
    cursor.row_factory = None  # plain tuples: a sqlite3.Row around each costs a third more
    try:
        for row in cursor.execute(f"{rows} > ? AND seq <= ? ORDER BY seq LIMIT ?", (after, until, limit)):
            if row[SEQ] != expected:
                if row[SEQ] > last:
                    break
                yield from _absent(connection, expected, row[SEQ] - expected)
            expected = row[SEQ] + 1
            yield row
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        yield from _one_by_one(connection, f"{rows} = ?", range(expected, last + 1))
        return
    if expected <= last:
        yield from _absent(connection, expected, last + 1 - expected)


def _absent(connection: sqlite3.Connection, first: int, count: int) -> Iterator[Damage]:
    """Tell what retention has deleted, maybe a moment ago, from what should be there."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'horizon'").fetchone()
    gone = min(count, max(0, int(row[0]) + 1 - first)) if row else 0
    if gone:
        yield Damage(first, None, "compacted", "retention has deleted it", gone)
    if count > gone:
        yield _missing(first + gone, count - gone)


def look_at_each(
    fetch: Callable[[int], Row | None], seqs: Iterable[int], damaged: Callable[[Damage], None]
) -> Iterator[Row]:
    """Yield the rows that can be read, and hand over what is wrong with the others."""
    for seq in seqs:
        try:
            row = fetch(seq)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            damaged(Damage(seq, None, "event_corrupt", str(error)))
        else:
            if row is not None:
                yield row


def _one_by_one(connection: sqlite3.Connection, one: str, seqs: Sequence[int]) -> Iterator[Row | Damage]:
    for seq in seqs:
        try:
            row = connection.execute(one, (seq,)).fetchone()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            yield Damage(seq, _id_of(connection, seq), "event_corrupt", str(error))
        else:
            yield row if row is not None else _missing(seq, 1)


def _id_of(connection: sqlite3.Connection, seq: int) -> str | None:
    """Give the id of an event whose other columns cannot be read."""
    try:
        row = connection.execute("SELECT event_id FROM log WHERE seq = ?", (seq,)).fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row else None


def _removed(event: StoredEvent) -> RemovedEvent:
    return RemovedEvent(**{name: getattr(event, name) for name in StoredEvent.__slots__})


def _missing(seq: int, count: int) -> Damage:
    return Damage(seq, None, "event_missing", "the log has no such row any more", count)


def _corrupt(row: Row, detail: str) -> Damage:
    ident = row[ID]
    return Damage(row[SEQ], ident if isinstance(ident, str) else None, "event_corrupt", detail)
