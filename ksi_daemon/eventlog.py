"""The log, read: by position, by stream, by id, by question. What is damaged is named, and left out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ksi_common.envelope import StoredEvent
from ksi_common.errors import DataLoss
from ksi_common.messages import matches
from ksi_daemon.cursors import parse_cursor
from ksi_daemon.database import Connection, Database, Error
from ksi_daemon.database.log_index import BLOCK
from ksi_daemon.database.log_rows import (
    Damage,
    DamagedRow,
    RemovedEvent,
    Row,
    event_of,
    is_damage,
    read_page,
)
from ksi_daemon.database.log_writer import COLUMNS
from ksi_daemon.log_search import LogQuery, search

__all__ = ["PAGE", "Damage", "EventLog", "Found", "LogPage", "LogQuery", "Place", "RemovedEvent"]

PAGE: Final = 1000
"""Rows of one hop to a reader: a snapshot is never held longer."""
PAGE_BYTES: Final = 4 * 1024 * 1024
REPLY_BYTES: Final = 1920 * 1024
"""Of the events of one reply, about: lists page by bytes, too."""
_REPLY_OVERHEAD: Final = 600
_AT_TIME: Final = (
    "SELECT coalesce((SELECT seq - 1 FROM log WHERE time >= ?1 AND seq >= coalesce("
    "(SELECT min(block) * ?3 FROM log_times WHERE latest >= ?1), "
    "(SELECT value FROM meta WHERE name = 'indexed_to'), 0) ORDER BY seq LIMIT 1), "
    "(SELECT max(seq) FROM log), ?2)"
)


@dataclass(frozen=True, slots=True)
class LogPage:
    """Events that match, and how far was read: ``last`` may be beyond the last of them."""

    events: Sequence[StoredEvent]
    last: int
    damaged: Sequence[Damage] = ()
    removed: int = 0
    """Events that match, and whose data retention has removed."""


@dataclass(slots=True)
class Found:
    """Events of one reply, whether there may be more, and what was left out as it is damaged."""

    events: list[StoredEvent] = field(default_factory=list)
    more: bool = False
    damaged: list[Damage] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        """Unpack as events and whether there may be more."""
        return iter((self.events, self.more))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cursor leads to, and what lies between what it had and what there is."""

    seq: int
    gap: str | None = None
    """other_log, tail_lost, beyond_the_log or horizon."""
    lost: int = 0
    """Positions that cannot be had any more, where that is known."""


class EventLog:
    """Read what is committed. Every method pages; none holds a snapshot between two awaits."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._home = database.home
        self.upcast: Callable[[StoredEvent], None] | None = None
        """Brings what is read up to date; None: no event has had two versions."""

    @property
    def log_id(self) -> str:
        """Of this log."""
        return self._database.log_id

    @property
    def horizon(self) -> int:
        """The last position that retention has deleted."""
        return self._database.facts.horizon

    def cursor(self, seq: int) -> str:
        """Give the cursor of a position."""
        return f"{self._database.log_id}-{seq}"  # as Cursor renders itself

    def locate(self, text: str, head: int) -> Place:
        """Find the place of a cursor in this log, which ends at ``head``; InvalidArgument: it is none."""
        cursor = parse_cursor(text)
        seq, facts = cursor.seq, self._database.facts
        if cursor.log_id != facts.log_id:
            shared = facts.former_logs.get(cursor.log_id)
            if shared is None:
                return Place(facts.horizon, "other_log")
            if seq > shared:
                return Place(shared, "tail_lost", seq - shared)
        if seq > head:
            return Place(head, "beyond_the_log", seq - head)
        if seq < facts.horizon:
            return Place(facts.horizon, "horizon", facts.horizon - seq)
        return Place(seq)

    async def page(
        self, after: int, until: int, patterns: Iterable[str], stream: str | None, limit: int = PAGE
    ) -> LogPage:
        """Read notifications of ``after < seq <= until`` that match, from at most ``limit`` rows."""
        wanted = _Names(patterns)
        after = max(after, self.horizon)

        def cut(connection: Connection) -> LogPage:
            """Stop where there are bytes enough, before the next row is read."""
            events: list[StoredEvent] = []
            damaged: list[Damage] = []
            size = removed = 0
            last = min(until, after + limit)
            for row in read_page(connection, after, until, limit):
                if isinstance(row, Damage):
                    damaged.append(row)
                elif row[2] != 1 and row[3] in wanted and (stream is None or row[4] == stream):
                    event = self._event(row, damaged)
                    if event is None:
                        continue
                    if type(event) is RemovedEvent:
                        removed += 1
                        continue
                    events.append(event)
                    size += len(event.data)
                    if size > PAGE_BYTES:
                        last = row[0]
                        break
            return LogPage(events, last, damaged, removed)

        async with self._database.reader() as reader:
            return await reader.run(cut)

    async def get(self, event_id: str) -> StoredEvent | None:
        """Read one event by its id; raise DataLoss where it is damaged."""
        sql = f"SELECT {COLUMNS} FROM log WHERE event_id = ?"  # noqa: S608
        found = await self._reply(lambda connection, _: connection.execute(sql, (event_id,)), 1)
        if found.damaged:
            raise _loss(found.damaged[0])
        if found.events and found.events[0].event_id != event_id:  # the index leads astray
            raise _loss(Damage(found.events[0].seq or 0, event_id, "event_corrupt", "its row is another's"))
        return found.events[0] if found.events else None

    async def stream(self, stream: str, *, from_version: int | None, backwards: bool, limit: int) -> Found:
        """Read events of a stream in order of version, or against it."""
        order, sign = ("DESC", "<=") if backwards else ("ASC", ">=")
        start = from_version if from_version is not None else (2**62 if backwards else 1)
        sql = (
            f"SELECT {COLUMNS} FROM log WHERE stream = ? AND version {sign} ? "  # noqa: S608
            f"ORDER BY version {order} LIMIT ?"
        )
        return await self._reply(lambda connection, _: connection.execute(sql, (stream, start, limit)), limit)

    async def query(self, query: LogQuery) -> Found:
        """Search the log."""
        head = self._database.head

        def rows(connection: Connection, found: Found) -> Iterator[Row]:
            return search(connection, query, found.damaged.append, head)

        return await self._reply(rows, query.limit)

    async def compacted(self, stream: str) -> int:
        """Give the version up to which retention has deleted a stream; 0: it is whole."""
        rows = await self._database.read(
            "SELECT coalesce((SELECT min(version) - 1 FROM log WHERE stream = ?1), "
            "(SELECT version FROM compacted_streams WHERE stream = ?1), 0)",
            (stream,),
        )
        return int(rows[0][0])

    async def position_at(self, time_us: int) -> int:
        """Give the seq before the first event at or after a time; the head where there is none."""
        rows = await self._database.read(_AT_TIME, (time_us, self.horizon, BLOCK))
        return int(rows[0][0])

    async def _reply(self, rows: "_Rows", limit: int) -> Found:
        """Read at most ``limit`` events, and no more bytes than a reply takes."""

        def cut(connection: Connection) -> Found:
            found = Found()
            size = 0
            for row in rows(connection, found):
                event = self._event(row, found.damaged)
                if event is None:
                    continue
                size += len(event.data) + _REPLY_OVERHEAD
                if found.events and size > REPLY_BYTES:
                    found.more = True
                    return found
                found.events.append(event)
                if len(found.events) == limit:
                    found.more = True
                    break
            return found

        async with self._database.reader() as reader:
            try:
                return await reader.run(cut)
            except Error as error:
                if not is_damage(error):
                    raise
                raise DataLoss(f"the log cannot be read here: {error}", reason="event_corrupt") from error

    def _event(self, row: Row, damaged: list[Damage]) -> StoredEvent | None:
        try:
            event = event_of(row, self._home)
        except DamagedRow as error:
            damaged.append(error.damage)
            return None
        if self.upcast is not None:
            self.upcast(event)
        return event


_Rows = Callable[[Connection, Found], Iterable[Row]]


def _loss(damage: Damage) -> DataLoss:
    return DataLoss(
        f"event {damage.event_id} at {damage.seq} is damaged: {damage.detail}",
        reason=damage.reason,
        seq=damage.seq,
        event_id=damage.event_id,
        hint="event:verify names everything that is damaged",
    )


class _Names:
    """Names that match, decided once a name."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(patterns)
        self._decided: dict[str, bool] = {}

    def __contains__(self, name: str) -> bool:
        decided = self._decided.get(name)
        if decided is None:
            decided = self._decided[name] = any(matches(pattern, name) for pattern in self._patterns)
        return decided
