"""The log, read: by position, by stream, by id, by question. What is damaged is named, and left out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import orjson

from ksi_common.envelope import StoredEvent
from ksi_common.errors import DataLoss
from ksi_common.events.event import Event
from ksi_common.messages import matches
from ksi_common.records import record
from ksi_daemon.cursors import parse_cursor
from ksi_daemon.database import Connection, Database, Error
from ksi_daemon.database.log_index import BLOCK
from ksi_daemon.database.log_rows import (
    DATA,
    KIND,
    NAME,
    REFERENCE,
    SEQ,
    STREAM,
    VERSION,
    Damage,
    DamagedRow,
    RemovedEvent,
    Row,
    event_of,
    is_damage,
    read_page,
)
from ksi_daemon.database.log_writer import READ
from ksi_daemon.log_search import LogQuery, search

__all__ = ["PAGE", "Damage", "EventLog", "LogPage", "LogQuery", "Place", "RemovedEvent", "StreamPage"]

PAGE: Final = 1000
"""Rows of one hop to a reader: a snapshot is never held longer."""
PAGE_BYTES: Final = 4 * 1024 * 1024
REPLY_BYTES: Final = 1920 * 1024
"""Of the events of one reply, about: lists page by bytes, too."""
_REPLY_OVERHEAD: Final = 600
_COMPACTED: Final = "SELECT version FROM compacted_streams WHERE stream = ?"
_AT_TIME: Final = (
    "SELECT coalesce((SELECT seq - 1 FROM log WHERE time >= ?1 AND seq >= coalesce("
    "(SELECT min(block) * ?3 FROM log_times WHERE latest >= ?1), "
    "(SELECT value FROM meta WHERE name = 'indexed_to'), 0) ORDER BY seq LIMIT 1), "
    "(SELECT max(seq) FROM log), ?2)"
)


@record
class LogPage:
    """Events that match, and how far was read: ``last`` may be beyond the last of them."""

    events: Sequence[StoredEvent]
    last: int
    damaged: Sequence[Damage] = ()
    removed: int = 0
    """Events that match, and whose data retention has removed."""


@record
class Place:
    """Where a cursor leads to, and what lies between what it had and what there is."""

    seq: int
    gap: str | None = None
    """other_log, tail_lost, beyond_the_log or horizon."""
    lost: int = 0
    """Positions that cannot be had any more, where that is known."""


class StreamPage(NamedTuple):
    """Events of a stream, in the order that was asked for; and the version to read on at, None at the end."""

    events: Sequence[StoredEvent]
    next_version: int | None


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

    def as_reply(self, stored: StoredEvent) -> Event:
        """Give an event as replies have it."""
        return Event(
            event=stored.event,
            data=orjson.loads(stored.data),  # what was told is believed
            event_id=stored.event_id,
            kind="request" if stored.kind == "request" else "notification",
            seq=stored.seq or 0,
            cursor=self.cursor(stored.seq or 0),
            stream=stored.stream,
            version=stored.version,
            correlation_id=stored.correlation_id,
            causation_id=stored.causation_id,
            actor=stored.actor,
            time=stored.time,
            raw=stored.raw,
            removed=isinstance(stored, RemovedEvent),
        )

    @property
    def beginning(self) -> Place:
        """The place before the first event that there is."""
        return self.beginning_after(0)

    def beginning_after(self, seq: int) -> Place:
        """Give the place where reading on from ``seq`` finds events again."""
        horizon = self.horizon
        return Place(seq) if seq >= horizon else Place(horizon, "horizon", horizon - seq)

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
        return self.beginning_after(seq)

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
                elif wanted[row[NAME]] and _is_told(row) and (stream is None or row[STREAM] == stream):
                    event = self._event(row, damaged)
                    if event is None:
                        continue
                    if type(event) is RemovedEvent:
                        removed += 1
                        continue
                    events.append(event)
                    size += len(event.data)
                    if size > PAGE_BYTES:
                        last = row[SEQ]
                        break
            return LogPage(events, last, damaged, removed)

        async with self._database.reader() as reader:
            return await reader.run(cut)

    async def get(self, event_id: str) -> StoredEvent | None:
        """Read one event by its id; raise DataLoss where it is damaged."""
        sql = f"SELECT {READ} FROM log WHERE event_id = ?"  # noqa: S608
        damaged: list[Damage] = []
        events, _ = await self._reply(lambda connection: connection.execute(sql, (event_id,)), 2, damaged)
        if events and events[0].event_id != event_id:  # the index leads astray
            damaged.append(Damage(events[0].seq or 0, event_id, "event_corrupt", "its row is another's"))
        if damaged:
            raise _loss(damaged[0])
        return events[0] if events else None

    async def stream(
        self,
        stream: str,
        *,
        from_version: int | None,
        backwards: bool,
        limit: int,
        damaged: list[Damage] | None = None,
    ) -> StreamPage:
        """Read events of a stream in order of version, or against it.

        ``damaged`` is given what is left out because it is damaged, or not there any more.
        """
        order, sign = ("DESC", "<=") if backwards else ("ASC", ">=")
        start = from_version if from_version is not None else (2**62 if backwards else 1)
        sql = (
            f"SELECT {READ} FROM log WHERE stream = ? AND version {sign} ? "  # noqa: S608
            f"ORDER BY version {order} LIMIT ?"
        )
        lost = damaged if damaged is not None else []
        versions = _Versions(stream, start, backwards=backwards, limit=limit, lost=lost)
        events, more = await self._reply(
            lambda connection: versions.of(connection, connection.execute(sql, (stream, start, limit))),
            limit,
            lost,
        )
        strays = [event for event in events if event.stream != stream]  # the index leads astray
        lost += [
            Damage(event.seq or 0, event.event_id, "event_corrupt", f"it is not of {stream}")
            for event in strays
        ]
        found = [event for event in events if event.stream == stream]
        last = (found[-1].version if found else None) or versions.last
        following = last - 1 if backwards else last + 1
        return StreamPage(found, following if more and following > 0 else None)

    async def query(
        self, query: LogQuery, *, damaged: list[Damage] | None = None
    ) -> tuple[Sequence[StoredEvent], bool]:
        """Search the log; tell whether there may be more. ``damaged``: as for ``stream``."""
        head = self._database.head
        lost = damaged if damaged is not None else []
        return await self._reply(
            lambda connection: search(connection, query, lost.append, head), query.limit, lost
        )

    async def compacted(self, stream: str) -> int:
        """Give the version up to which retention has deleted a stream; 0: it is whole."""
        rows = await self._database.read(_COMPACTED, (stream,))
        return int(rows[0][0]) if rows else 0

    async def position_at(self, time_us: int) -> int:
        """Give the seq before the first event at or after a time; the head where there is none."""
        rows = await self._database.read(_AT_TIME, (time_us, self.horizon, BLOCK))
        return int(rows[0][0])

    async def _reply(
        self, rows: Callable[[Connection], Iterable[Row]], limit: int, damaged: list[Damage]
    ) -> tuple[list[StoredEvent], bool]:
        """Read at most ``limit`` rows, and no more bytes than a reply takes."""

        def cut(connection: Connection) -> tuple[list[StoredEvent], bool]:
            events: list[StoredEvent] = []
            size = looked_at = 0
            for row in rows(connection):
                looked_at += 1
                event = self._event(row, damaged)
                if event is None:
                    continue
                size += len(event.data) + _REPLY_OVERHEAD
                if events and size > REPLY_BYTES:
                    return events, True
                events.append(event)
            return events, looked_at == limit

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
        if self.upcast is not None and type(event) is not RemovedEvent:
            self.upcast(event)
        return event


class _Versions:
    """The versions of a stream, as they are read. They have no gaps: what is between two rows is lost."""

    def __init__(self, stream: str, start: int, *, backwards: bool, limit: int, lost: list[Damage]) -> None:
        self.last = 0
        """That was looked at."""
        self._stream = stream
        self._start = start
        self._backwards = backwards
        self._limit = limit
        self._lost = lost

    def of(self, connection: Connection, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows, and note what is missing before each of them."""
        step = -1 if self._backwards else 1
        expected, number = self._start, 0
        for row in rows:
            version = row[VERSION]
            if type(version) is int:
                if (version - expected) * step > 0 and (number or self._has_begun(connection)):
                    self._note(connection, expected, version - step)
                self.last, expected = version, version + step
            number += 1
            yield row
        if self._backwards and 0 < number < self._limit and expected > 0:
            self._note(connection, expected, 1)

    def _has_begun(self, connection: Connection) -> bool:
        """Tell whether the stream reaches to where it is read from, rather than ending before."""
        sql = "SELECT 1 FROM log WHERE stream = ? AND version > ?"
        return (
            not self._backwards or connection.execute(sql, (self._stream, self._start)).fetchone() is not None
        )

    def _note(self, connection: Connection, *ends: int) -> None:
        compacted = connection.execute(_COMPACTED, (self._stream,)).fetchone()
        first, last = max(min(ends), compacted[0] + 1 if compacted else 1), max(ends)
        if first <= last:
            which = f"version {first} of {self._stream} is"
            if first < last:
                which = f"versions {first} to {last} of {self._stream} are"
            self._lost.append(Damage(0, None, "event_missing", f"{which} not there", last - first + 1))


def _loss(damage: Damage) -> DataLoss:
    return DataLoss(
        f"event {damage.event_id} at {damage.seq} is damaged: {damage.detail}",
        reason=damage.reason,
        seq=damage.seq,
        event_id=damage.event_id,
        hint="event:verify names everything that is damaged",
    )


def _is_told(row: Row) -> bool:
    """Tell whether a row is a notification: what has data is one, whatever it says of its kind."""
    return row[KIND] != 1 or row[DATA] is not None or row[REFERENCE] is not None


class _Names(dict[object, bool]):
    """Whether names match, decided once a name; what is no name may have been any."""

    def __init__(self, patterns: Iterable[str]) -> None:
        super().__init__()
        self._patterns = tuple(patterns)

    def __missing__(self, name: object) -> bool:
        decided = not isinstance(name, str) or any(matches(pattern, name) for pattern in self._patterns)
        self[name] = decided
        return decided
