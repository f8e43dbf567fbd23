"""The log's end, as the writer thread sees it: numbers, versions, digests, rows not yet written."""

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from ksi_common.envelope import StoredEvent
from ksi_common.errors import AlreadyExists, FailedPrecondition
from ksi_common.strict_json import dumps
from ksi_daemon.blob_files import path_of

WRITTEN: Final = (
    "seq, event_id, kind, name, stream, version, correlation_id, causation_id, actor, hop, time, data, "
    "digest, chain"
)
"""What an event told on this node has; the other columns stay NULL, and cost nothing to bind."""
READ: Final = (
    "seq, event_id, kind, name, stream, version, correlation_id, causation_id, actor, hop, time, data, "
    "reference, digest"
)
"""What an event is made of: each column that is read costs as much as a call."""
KINDS: Final = ("notification", "request")
EMPTY_CHAIN: Final = bytes(32)

ExpectedVersion = Literal["any", "none", "exists"] | int

# sqlite3 looks for an adapter, in vain, for each None and each bytes. So what is absent is bound as an empty
# text or a zero, which no column may hold, and a digest as a bytearray.
_ROW = "(?,?,?,?,nullif(?,''),nullif(?,0),?,nullif(?,''),?,?,?,nullif(?,''),?,?)"
_SIZES = (64, 32, 16, 8, 4, 2, 1)
_INSERT = {size: f"INSERT INTO log ({WRITTEN}) VALUES " + ",".join([_ROW] * size) for size in _SIZES}  # noqa: S608
_VERSION = (
    "SELECT coalesce((SELECT max(version) FROM log WHERE stream = ?1), "
    "(SELECT version FROM compacted_streams WHERE stream = ?1), 0)"
)
_KNOWN_STREAMS = 10_000

CLAIM_CHECKED: Final = 64 * 1024
"""Bytes of data beyond which a row refers to a blob rather than holding them."""


Mark = tuple[int, int, bytes]
"""A point that the rows of a failed unit are taken back to: how many there were, seq, chain."""


class LogWriter:
    """Number events and keep their rows until the end of the group, then write them in few statements.

    Owned by the writer thread. Rows of one statement cost half of what rows of their own cost, and give
    the GIL away once instead of once a row.
    """

    def __init__(self, connection: sqlite3.Connection, home: Path | None = None) -> None:
        self._connection = connection
        self.home = home
        """Where blobs are; None: rows hold their data, however large."""
        self._rows: list[tuple[Any, ...]] = []
        self._ids: dict[str, StoredEvent] = {}
        self._versions: dict[str, int] = {}
        self._touched: list[tuple[str, int]] = []
        self._references: list[tuple[str, int]] = []
        row = connection.execute("SELECT seq, chain FROM log ORDER BY seq DESC LIMIT 1").fetchone()
        self.seq: int = row[0] if row else 0
        self.chain: bytes = row[1] if row else EMPTY_CHAIN
        self._on_disk = self.seq, self.chain

    def mark(self) -> Mark:
        """Remember this point; versions are remembered from here on."""
        if self._touched:
            self._touched.clear()
        return len(self._rows), self.seq, self.chain

    def take_back(self, mark: Mark) -> None:
        """Forget what was appended since ``mark``, which must be the last one."""
        rows, self.seq, self.chain = mark
        for row in self._rows[rows:]:
            self._ids.pop(row[1], None)
        del self._rows[rows:]
        if self._references:
            self._references = [claimed for claimed in self._references if claimed[1] <= self.seq]
        for stream, version in reversed(self._touched):
            self._versions[stream] = version
        self._touched.clear()

    def append(self, event: StoredEvent, *, named: bool = False) -> None:
        """Give ``event`` its number and keep its row; ``named``: its id came from outside."""
        # First: what cannot be digested, or is no text, is to leave no trace.
        digest = digest_of(event)
        told = event.kind == "notification"
        claimed = told and len(event.data) > CLAIM_CHECKED and self.home is not None
        text = event.data.decode() if told and not claimed else ""
        if named:
            self._ids[event.event_id] = event
        self.seq = event.seq = seq = self.seq + 1
        self.chain = chain = sha256(self.chain + seq.to_bytes(8) + digest).digest()
        if claimed:
            self._references.append((reference_to(event.data), seq))
        self._rows.append(
            (
                seq,
                event.event_id,
                0 if told else 1,
                event.event,
                event.stream or "",
                event.version or 0,
                event.correlation_id,
                event.causation_id or "",
                event.actor,
                event.hop,
                event.time_us,
                text,
                bytearray(digest),
                bytearray(chain),
            )
        )

    def find(self, event: StoredEvent) -> StoredEvent | None:
        """Give the event stored under the same id; raise AlreadyExists where it says something else."""
        known = self._ids.get(event.event_id) or self._stored(event.event_id)
        if known is None:
            return None
        if known.event != event.event or known.stream != event.stream or not self._says(known, event.data):
            raise AlreadyExists(
                f"event id {event.event_id!r} is taken by an event with other content", reason="id_reused"
            )
        return known

    def next_version(self, stream: str, expected: ExpectedVersion) -> int:
        """Give the version that the next event of ``stream`` has; raise where it is not as expected."""
        actual = self.version(stream)
        fits = {"any": True, "none": actual == 0, "exists": actual > 0}.get(str(expected), actual == expected)
        if not fits:
            raise FailedPrecondition(
                f"stream {stream!r} is at version {actual}, not {expected}",
                reason="wrong_version",
                expected=expected,
                actual=actual,
            )
        self._touched.append((stream, actual))
        self._versions[stream] = actual + 1
        return actual + 1

    def version(self, stream: str) -> int:
        """Give the version of ``stream``: how many events it has had."""
        version = self._versions.get(stream)
        if version is None:
            version = int(self._connection.execute(_VERSION, (stream,)).fetchone()[0])
            self._versions[stream] = version
        return version

    def flush(self) -> None:
        """Write the rows kept, within the transaction that is open."""
        rows, start = self._rows, 0
        for size in _SIZES:
            while len(rows) - start >= size:
                chunk = rows[start : start + size]
                self._connection.execute(_INSERT[size], [value for row in chunk for value in row])
                start += size
        if self._references:
            self._connection.executemany("UPDATE log SET reference = ? WHERE seq = ?", self._references)

    def committed(self) -> None:
        """Forget the rows: they are on disk."""
        self._on_disk = self.seq, self.chain
        self._rows.clear()
        self._references.clear()
        self._ids.clear()
        if len(self._versions) > _KNOWN_STREAMS:
            self._versions.clear()

    def give_up(self) -> None:
        """Forget everything that the transaction held, whether SQLite can take it back or not."""
        self._rows.clear()
        self._references.clear()
        self._ids.clear()
        self._versions.clear()
        self._touched.clear()
        self.seq, self.chain = self._on_disk

    def lost(self) -> None:
        """Forget it, and look where the log ends now that SQLite has taken it back."""
        self.give_up()
        row = self._connection.execute("SELECT seq, chain FROM log ORDER BY seq DESC LIMIT 1").fetchone()
        self.seq, self.chain = (row[0], row[1]) if row else (0, EMPTY_CHAIN)

    def _says(self, known: StoredEvent, data: bytes) -> bool:
        """Tell whether an event has this data; where that is elsewhere or gone, its digest does."""
        if known.data == data:
            return True
        row = self._connection.execute("SELECT digest FROM log WHERE seq = ?", (known.seq,)).fetchone()
        return bool(row) and digest_of(replace(known, data=data)) == row[0]

    def _stored(self, event_id: str) -> StoredEvent | None:
        sql = f"SELECT {READ} FROM log WHERE event_id = ?"  # noqa: S608
        row = self._connection.execute(sql, (event_id,)).fetchone()
        return from_row(row) if row else None


def reference_to(data: bytes) -> str:
    """Give the reference to the blob with this data, as a row holds it."""
    digest = sha256(data).hexdigest()
    return orjson.dumps({"path": path_of(digest), "length": len(data), "sha256": digest}).decode()


def from_row(row: Iterable[Any]) -> StoredEvent:
    """Make the event of a row of the log, which begins with the columns ``READ``."""
    (
        seq,
        event_id,
        kind,
        name,
        stream,
        version,
        correlation,
        causation,
        actor,
        hop,
        time_us,
        data,
        *_,
    ) = row
    # By position, in the order of its fields: names cost a third of it.
    return StoredEvent(
        name,
        data.encode() if data is not None else b"null",
        event_id,
        correlation,
        causation,
        actor,
        hop,
        time_us,
        seq,
        stream,
        version,
        KINDS[kind],
    )


def digest_of(event: StoredEvent) -> bytes:
    """Give the SHA-256 of what an event says: a JSON array of its facts, then its data."""
    facts = dumps(
        (
            event.kind,
            event.event,
            event.event_id,
            event.stream,
            event.version,
            event.correlation_id,
            event.causation_id,
            event.actor,
            event.hop,
            event.time_us,
        )
    )
    return sha256(facts + event.data).digest()
