"""Look at the log itself: what a daemon must have kept, whatever happened to it."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from ksi_common.async_db import AsyncSQLiteDB
from ksi_common.envelope import StoredEvent
from ksi_daemon.database.log_writer import EMPTY_CHAIN, READ, digest_of, from_row

_PAGE = f"SELECT {READ}, chain FROM log WHERE seq > ? ORDER BY seq LIMIT 5000"


class Audit:
    """Read a log from where the last reading ended; an AssertionError says what is wrong with it."""

    def __init__(self, database: Path) -> None:
        self.seqs: dict[str, int] = {}
        """Of every event read, by its id."""
        self._database = database
        self._seq = 0
        self._chain = EMPTY_CHAIN

    async def read_on(self) -> Sequence[StoredEvent]:
        """Read what is new: seq without a gap, no id twice, digests and chain as computed here."""
        events: list[StoredEvent] = []
        async with AsyncSQLiteDB(self._database, read_only=True) as db:
            while rows := await db.fetch(_PAGE, (self._seq,)):
                for row in rows:
                    events.append(from_row(row))
                    self._check(events[-1], row["digest"], row["chain"])
        return events

    def expect(self, acknowledged: Mapping[str, int]) -> None:
        """Check that every acknowledged event is where its acknowledgement said."""
        lost = [event_id for event_id, seq in acknowledged.items() if self.seqs.get(event_id) != seq]
        assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged events lost: {lost[:3]}"

    async def check_integrity(self) -> None:
        """Read the whole log once more, and let SQLite look at the file."""
        again = Audit(self._database)
        await again.read_on()
        assert again.seqs == self.seqs, "the log is not what it was"
        async with AsyncSQLiteDB(self._database, read_only=True) as db:
            found = [row[0] for row in await db.fetch("PRAGMA integrity_check")]
        assert found == ["ok"], found

    def _check(self, event: StoredEvent, digest: bytes, chain: bytes) -> None:
        assert event.seq == self._seq + 1, f"seq {event.seq} follows {self._seq}"
        assert event.event_id not in self.seqs, f"{event.event_id} is stored twice"
        if event.kind == "notification":  # a request leaves its digest only
            assert digest == digest_of(event), f"{event.event_id} says something else than its digest"
        self._seq = event.seq
        self._chain = sha256(self._chain + event.seq.to_bytes(8) + digest).digest()
        assert chain == self._chain, f"the chain breaks at {event.seq}"
        self.seqs[event.event_id] = event.seq
