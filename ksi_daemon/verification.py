"""Verify the log: digest, chain and gaplessness of each position, and the bytes that rows refer to."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from ksi_common.errors import DataLoss, InvalidArgument
from ksi_common.records import record
from ksi_common.references import Reference
from ksi_daemon.blobs import Blobs
from ksi_daemon.database import Connection, Database
from ksi_daemon.database.log_rows import (
    CHAIN,
    CHAINED,
    DATA,
    DIGEST,
    ID,
    REFERENCE,
    SEQ,
    Damage,
    DamagedRow,
    RemovedEvent,
    Row,
    event_of,
    read_page,
)
from ksi_daemon.database.log_writer import EMPTY_CHAIN
from ksi_daemon.referrers import Referred, Referrers

PAGE: Final = 500
"""Rows of one hop to a reader."""


@record
class DamagedReference:
    """Bytes that a row of a plugin refers to, and that are not what they were."""

    referred: Referred
    reason: str
    detail: str


@dataclass(slots=True)
class Verified:
    """How far it came, and what it found since it said so last."""

    position: int
    until: int
    checked: int = 0
    """Positions, or references, since the start."""
    removed: int = 0
    """Events without data, as retention removed it: their digests are in the chain all the same."""
    damaged: list[Damage] = field(default_factory=list)
    references: list[DamagedReference] = field(default_factory=list)


class Verifier:
    """Recompute what the log says of itself. Everything else goes on meanwhile."""

    def __init__(self, database: Database, blobs: Blobs, referrers: Referrers) -> None:
        self._database = database
        self._blobs = blobs
        self._referrers = referrers

    async def verify(self, first: int | None, last: int | None, *, deep: bool) -> AsyncIterator[Verified]:
        """Verify positions from ``first`` to ``last``, page by page; ``deep``: and all bytes referred to."""
        horizon = self._database.facts.horizon
        position = max(first or 1, horizon + 1) - 1
        until = min(last, self._database.head) if last is not None else self._database.head
        chain = _Chain(await self._chain_at(position))
        checked = removed = 0
        while position < until:
            page = _Page(position, min(until, position + PAGE), chain, self._database.home, deep=deep)
            async with self._database.reader() as reader:
                await reader.run(page.verify)
            position = page.until
            checked += page.checked
            removed += page.removed
            yield Verified(position, until, checked, removed, page.damaged)
        if deep:
            async for damaged in self._damaged_references():
                yield Verified(position, until, checked, removed, references=[damaged])

    async def _chain_at(self, position: int) -> bytes | None:
        if position == 0:
            return EMPTY_CHAIN
        rows = await self._database.read("SELECT chain FROM log WHERE seq = ?", (position,))
        if rows:
            return rows[0][0] if isinstance(rows[0][0], bytes) else None
        if position != self._database.facts.horizon:
            return None
        rows = await self._database.read("SELECT value FROM meta WHERE name = 'horizon_chain'")
        return bytes.fromhex(rows[0][0]) if rows else None

    async def _damaged_references(self) -> AsyncIterator[DamagedReference]:
        async for referred in self._referrers.all():
            try:
                reference = Reference.stored(referred.path, referred.offset, referred.length, referred.sha256)
                async for _ in self._blobs.stream(reference):
                    pass
            except DataLoss as error:
                yield DamagedReference(referred, str(error.details.get("reason")), error.message)
            except InvalidArgument as error:  # of a path that no row was given
                yield DamagedReference(referred, "reference_corrupt", error.message)


class _Chain:
    """What the chain may be, after the last position: one value, or two where they did not agree."""

    def __init__(self, value: bytes | None) -> None:
        self._values: Sequence[bytes] = () if value is None else (value,)

    def follow(self, row: Row) -> bool:
        """Go on to ``row``; tell whether its chain follows from what was before."""
        stored: bytes = row[CHAIN]
        computed = [sha256(value + row[SEQ].to_bytes(8) + row[DIGEST]).digest() for value in self._values]
        follows = stored in computed or not computed
        # Either the digest or the chain of this row is damaged; which of them, the next row tells.
        self._values = (stored,) if follows else (stored, *computed)
        return follows

    def lose(self) -> None:
        """Take what comes next as it is: what was before it cannot be known."""
        self._values = ()


class _Page:
    """Some positions, verified in the thread of a reader."""

    def __init__(self, after: int, until: int, chain: _Chain, home: Path, *, deep: bool) -> None:
        self.until = until
        self.damaged: list[Damage] = []
        self.checked = 0
        self.removed = 0
        self._after = after
        self._chain = chain
        self._home = home
        self._deep = deep

    def verify(self, connection: Connection) -> None:
        """Look at each row."""
        for row in read_page(connection, self._after, self.until, PAGE, CHAINED):
            if isinstance(row, Damage):
                self.checked += row.count
                self._chain.lose()
                if row.reason != "compacted":
                    self.damaged.append(row)
            else:
                self.checked += 1
                self.damaged += self._damages(row)

    def _damages(self, row: Row) -> Iterator[Damage]:
        follows = self._follows(row)
        try:
            if row[DATA] is not None or row[REFERENCE] is None or self._look_at_reference(row):
                event = event_of(row, self._home)
                self.removed += type(event) is RemovedEvent
        except DamagedRow as error:
            yield error.damage
        else:
            if not follows:
                yield Damage(row[SEQ], row[ID], "chain_broken", "its digest or its chain is not what it was")

    def _look_at_reference(self, row: Row) -> bool:
        # What is no text is damaged, and said to be.
        return self._deep or not isinstance(row[REFERENCE], str) or '"path"' not in row[REFERENCE]

    def _follows(self, row: Row) -> bool:
        if isinstance(row[DIGEST], bytes) and isinstance(row[CHAIN], bytes):
            return self._chain.follow(row)
        self._chain.lose()
        return False
