"""Retention: what is kept of the log, by name, age and size; the rest goes, a slice at a time.

First an event's data goes: its row stays as a stub, with its id, digest and chain, so that the log can be
verified over it and the same event is not stored again. Later the oldest rows go, up to a recorded horizon
before which nothing holds data: the chain is verified from there. Blobs that nobody refers to any more are
removed, and free pages are given back to the file system. Each slice is one unit of some milliseconds.

What a table is made of again stays, whatever the rules say, until a snapshot of the table stands for it: one
is made, and held against what is live, when the first such event is to go.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Final

import orjson
import structlog

from ksi_common.clock import Clock
from ksi_common.errors import KSIError
from ksi_common.events.event import Swept as SweptEvent
from ksi_common.messages import matches
from ksi_daemon.blob_sweep import REFERENCE, remove_unnamed
from ksi_daemon.database import Database, Transaction
from ksi_daemon.database.log_index import drop_indexed
from ksi_daemon.referrers import Referrers
from ksi_daemon.replay.sandboxes import Sandboxes
from ksi_daemon.settings import RetentionRule, RetentionSettings
from ksi_daemon.supervisor import attempt_async

log = structlog.get_logger()

LOOK: Final = 5_000
"""Rows weighed in one hop to a reader."""
SLICE: Final = 250
"""Rows of one unit."""
PAGES: Final = 200
"""Pages given back in one unit."""
_DAY_US: Final = 86_400_000_000

_UNKNOWN: Final = '{"path":null}'
"""What is said of data that is gone, and whose reference was damaged."""
_HAS_DATA: Final = """kind = 0 AND (data IS NOT NULL OR reference LIKE '%"path":"%')"""
_TIME: Final = "iif(typeof(time) = 'integer', time, 0)"
"""A time that is damaged is that of the event after it: those are looked at one by one."""
_WEIGH: Final = (
    f"SELECT CAST(name AS BLOB), max({_TIME}), "  # noqa: S608
    f"sum(coalesce(length(CAST(data AS BLOB)), json_extract({REFERENCE}, '$.length'))) "
    f"FROM log WHERE seq > ? AND seq <= ? AND {_HAS_DATA} GROUP BY name"
)
_OLDEST: Final = f"SELECT min({_TIME}) FROM log WHERE seq > ? AND seq <= ?"  # noqa: S608
_FULL: Final = (
    f"SELECT seq, CAST(name AS BLOB), {_TIME}, CAST(data AS BLOB), CAST(reference AS BLOB) FROM log "  # noqa: S608
    f"WHERE seq > ? AND seq <= ? AND {_HAS_DATA} ORDER BY seq"
)
_FIRST_FULL: Final = f"SELECT min(seq) FROM log WHERE seq > ? AND seq <= ? AND {_HAS_DATA}"  # noqa: S608
_YOUNG: Final = f"SELECT min(seq) FROM log WHERE {_TIME} >= ?"  # noqa: S608
_LAST_CHAINED: Final = "SELECT max(seq) FROM log WHERE seq > ? AND seq <= ? AND typeof(chain) = 'blob'"
"""Where the log may begin: a row that is lost or damaged says nothing that it could be verified from."""


@dataclass(slots=True)
class Swept:
    """What one run has removed."""

    removed: int = 0
    """Events whose data is gone."""
    removed_bytes: int = 0
    compacted: int = 0
    """Rows deleted."""
    blobs: int = 0
    blob_bytes: int = 0
    returned_bytes: int = 0
    """Of the database's file."""
    needed: int = 0
    """Events that no rule keeps, and that are left because tables are made of them again."""


class _Way:
    """From the newest event to the oldest: what each rule still lets be kept."""

    def __init__(self, now_us: int, snapshot_seq: int, rules: Sequence[RetentionRule]) -> None:
        self.snapshot_seq = snapshot_seq
        """What tables are made of up to here, a snapshot stands for."""
        self.kept_bytes = [0] * len(rules)
        """By rule, in their order."""
        self.now_us = now_us
        self._rules = rules

    def takes(self, name: str, time_us: int, size: int) -> bool:
        """Count an event; tell whether its rule keeps it."""
        index = next(index for index, rule in enumerate(self._rules) if matches(rule.pattern, name))
        rule = self._rules[index]
        self.kept_bytes[index] += size
        old = rule.max_age_days is not None and time_us < self.now_us - rule.max_age_days * _DAY_US
        return not old and (rule.max_bytes is None or self.kept_bytes[index] <= rule.max_bytes)


class Retention:
    """Sweep the log now and then. One sweep at a time; whoever lags behind gets a gap."""

    def __init__(
        self,
        database: Database,
        referrers: Referrers,
        clock: Clock,
        settings: RetentionSettings,
        sandboxes: Sandboxes,
    ) -> None:
        self._database = database
        self._referrers = referrers
        self._sandboxes = sandboxes
        self._clock = clock
        self.settings = settings
        self.rules = settings.all_rules
        self.last = Swept()
        """What the last sweep has removed."""
        self.swept_us: int | None = None
        """When it ended."""
        self._turn = asyncio.Lock()

    async def serve(self) -> None:
        """Sweep again and again, until cancelled."""
        await _or_log(self._referrers.silent)  # whoever is here now is missed later, whenever that is
        while True:
            await asyncio.sleep(self.settings.every_s)
            await _or_log(self.sweep)

    async def sweep(self, *, trust_live: bool = False) -> Swept:
        """Remove what no rule keeps.

        ``trust_live``: where the log does not make the tables that are live, let these be the snapshot.
        """
        async with self._turn, self._sandboxes.turn:
            swept = Swept()
            await self._remove_data(swept)
            if swept.needed and await self._keep_snapshot(trust_live=trust_live):
                await self._remove_data(swept)
            await self._compact(swept)
            swept.blobs, swept.blob_bytes = await remove_unnamed(
                self._database, self._referrers, self._clock.time_us()
            )
            await self._return_pages(swept)
            self.last, self.swept_us = swept, self._clock.time_us()
            if replace(swept, needed=0) != Swept():
                told = SweptEvent(horizon=self._database.facts.horizon, **asdict(swept))
                await self._database.write_apart(lambda tx: tx.tell(told))
        return swept

    async def _remove_data(self, swept: Swept) -> None:
        """Go from the newest events to the oldest: what fits is kept, what is beyond loses its data."""
        snapshot = await self._sandboxes.snapshot()
        swept.needed = 0
        way = _Way(self._clock.time_us(), snapshot.seq if snapshot is not None else 0, self.rules)
        high = self._database.head
        while high > self._database.facts.horizon:
            low = max(self._database.facts.horizon, high - LOOK)
            if await self._is_too_much(low, high, way):
                await self._remove_from(low, high, way, swept)
            high = low

    async def _is_too_much(self, low: int, high: int, way: _Way) -> bool:
        """Weigh rows in one go; tell whether they have to be looked at one by one."""
        rows = await self._database.read(_WEIGH, (low, high))
        oldest = await self._database.read(_OLDEST, (low, high))
        before = tuple(way.kept_bytes)
        taken = [
            way.takes(_name(name), min(time_us, oldest[0][0]), size or 0) for name, time_us, size in rows
        ]
        if all(taken):
            return False
        way.kept_bytes[:] = before
        return True

    async def _remove_from(self, low: int, high: int, way: _Way, swept: Swept) -> None:
        time_us = way.now_us
        while high > low:
            first = max(low, high - SLICE)
            rows = await self._database.read(_FULL, (first, high))
            gone: list[tuple[str, int]] = []
            for seq, stored, told_us, data, reference in reversed(rows):
                size, stub = _stub(data, reference)
                time_us = told_us or time_us
                name = _name(stored)
                if way.takes(name, time_us, size):
                    continue
                if seq > way.snapshot_seq and name in self._sandboxes.needed:
                    swept.needed += 1
                else:
                    gone.append((stub, seq))
                    swept.removed_bytes += size
            if gone:
                await self._database.write_apart(lambda tx, gone=gone: _remove(tx, gone))  # type: ignore[misc]
                swept.removed += len(gone)
            high = first

    async def _keep_snapshot(self, *, trust_live: bool) -> bool:
        """Have a snapshot stand for what tables are made of; give whether there is one."""
        try:
            differences = await self._sandboxes.keep_snapshot(trust_live=trust_live)
        except KSIError as error:
            log.error("retention.no_snapshot", error=str(error))  # noqa: TRY400 -- expected, and said whole
            return False
        if differences and not trust_live:
            log.error("retention.snapshot_differs", difference=differences[0], hint="ksi replay")
            return False
        return True

    async def _compact(self, swept: Swept) -> None:
        """Delete the oldest rows: up to the first that has data, and not the last of all."""
        facts, head = self._database.facts, self._database.head
        until = min(head - 1, await self._oldest_stub_to_keep())
        end = facts.horizon
        while end < until:
            first, end = end, min(until, end + SLICE)
            row = await self._database.read(_FIRST_FULL, (first, end))
            if row[0][0] is not None:
                until = end = row[0][0] - 1
            after = facts.horizon
            row = await self._database.read(_LAST_CHAINED, (after, end))
            if row[0][0] is not None:  # else all of it is lost already: with what comes next
                last = int(row[0][0])
                await self._database.write_apart(
                    lambda tx, after=after, last=last: self._delete(tx, after, last)  # type: ignore[misc]
                )
                swept.compacted += last - after

    async def _oldest_stub_to_keep(self) -> int:
        """Give the position up to which stubs are too old, or too many."""
        oldest_us = self._clock.time_us() - int(self.settings.stubs_max_age_days * _DAY_US)
        rows = await self._database.read(_YOUNG, (oldest_us,))
        young = int(rows[0][0]) - 1 if rows[0][0] is not None else self._database.head
        return max(young, self._database.head - self.settings.max_stubs)

    def _delete(self, tx: Transaction, after: int, until: int) -> None:
        (chain,) = tx.execute("SELECT chain FROM log WHERE seq = ?", (until,)).fetchone()
        drop_indexed(tx.execute, after, until)
        tx.execute(
            "INSERT INTO compacted_streams SELECT stream, max(version) FROM log "
            "WHERE seq > ? AND seq <= ? AND stream IS NOT NULL GROUP BY stream "
            "ON CONFLICT (stream) DO UPDATE SET version = excluded.version",
            (after, until),
        )
        tx.execute("DELETE FROM log WHERE seq > ? AND seq <= ?", (after, until))
        tx.execute("REPLACE INTO meta VALUES ('horizon', ?), ('horizon_chain', ?)", (until, chain.hex()))
        facts = self._database.facts
        tx.on_commit(lambda: setattr(facts, "horizon", until))

    async def _return_pages(self, swept: Swept) -> None:
        """Give free pages back, while there are more than a few."""
        size = int((await self._database.read("PRAGMA page_size"))[0][0])
        while (left := await self._free_pages()) > PAGES:
            await self._database.write_apart(_vacuum)
            returned = left - await self._free_pages()
            if returned <= 0:
                return
            swept.returned_bytes += returned * size

    async def _free_pages(self) -> int:
        return int((await self._database.read("PRAGMA freelist_count"))[0][0])


async def _or_log(work: Callable[[], Awaitable[object]]) -> None:
    """Do it or say why not: it is tried again with the next sweep, and nobody is to stop for it."""
    outcome = await attempt_async(work)
    if isinstance(outcome, BaseException):
        log.error("retention.failed", error=repr(outcome), exc_info=outcome)


def _name(stored: bytes | None) -> str:
    """Give an event's name for what may be damaged; the rule for everything is that of what is no name."""
    return (stored or b"").decode(errors="replace")


def _vacuum(tx: Transaction) -> None:
    for _ in range(PAGES):  # with a number it would be a statement of as many steps, and sqlite3 takes one
        tx.execute("PRAGMA incremental_vacuum(1)")


def _remove(tx: Transaction, gone: Sequence[tuple[str, int]]) -> None:
    for stub, seq in gone:
        tx.execute("UPDATE log SET data = NULL, reference = ? WHERE seq = ?", (stub, seq))


def _stub(data: bytes | None, reference: bytes | None) -> tuple[int, str]:
    """Give the size of an event's data, and what is said of it once it is gone: its length and its hash.

    The data may be damaged, and no text any more: that goes like any other.
    """
    if data is not None:
        length, digest = len(data), sha256(data).hexdigest()
    else:
        try:
            full = orjson.loads(reference or b"{}")
            length, digest = int(full["length"]), str(full["sha256"])
        except (ValueError, LookupError, TypeError):
            return 0, _UNKNOWN
    return length, orjson.dumps({"length": length, "sha256": digest}).decode()
