"""The log, read: by position, by stream, by id, by question."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ksi_common.envelope import StoredEvent
from ksi_common.messages import matches
from ksi_daemon.database import Connection, Database
from ksi_daemon.database.log_writer import COLUMNS, KINDS, from_row

PAGE: Final = 1000
"""Rows of one hop to a reader: a snapshot is never held longer."""
PAGE_BYTES: Final = 4 * 1024 * 1024
REPLY_BYTES: Final = 1920 * 1024
"""Of the events of one reply, about: lists page by bytes, too."""
_REPLY_OVERHEAD: Final = 600


@dataclass(frozen=True, slots=True)
class LogPage:
    """Events that match, and how far was read: ``last`` may be beyond the last of them."""

    events: Sequence[StoredEvent]
    last: int


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What to look for; None: anything. Times in microseconds since 1970; ``until`` excluded."""

    patterns: Sequence[str] = ()
    stream: str | None = None
    correlation_id: str | None = None
    actor: str | None = None
    kind: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    after: int | None = None
    """Beyond this seq, in the direction read."""
    reverse: bool = True
    limit: int = 100


class EventLog:
    """Read what is committed. Every method pages; none holds a snapshot between two awaits."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def log_id(self) -> str:
        """Of this log."""
        return self._database.log_id

    def cursor(self, seq: int) -> str:
        """Give the cursor of a position."""
        return f"{self._database.log_id}-{seq}"  # as Cursor renders itself

    async def page(
        self, after: int, until: int, patterns: Iterable[str], stream: str | None, limit: int = PAGE
    ) -> LogPage:
        """Read notifications of ``after < seq <= until`` that match, from at most ``limit`` rows."""
        sql = f"SELECT {COLUMNS} FROM log WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"  # noqa: S608
        wanted = _Names(patterns)

        def cut(connection: Connection) -> LogPage:
            """Stop where there are bytes enough, before the next row is read."""
            events: list[StoredEvent] = []
            last = size = rows = 0
            for row in connection.execute(sql, (after, until, limit)):
                rows += 1
                last = row[0]
                if row[2] == 0 and row[3] in wanted and (stream is None or row[4] == stream):
                    events.append(from_row(row))
                    size += len(events[-1].data)
                    if size > PAGE_BYTES:
                        return LogPage(events, last)
            return LogPage(events, last if rows == limit else until)

        async with self._database.reader() as reader:
            return await reader.run(cut)

    async def get(self, event_id: str) -> StoredEvent | None:
        """Read one event by its id."""
        sql = f"SELECT {COLUMNS} FROM log WHERE event_id = ?"  # noqa: S608
        rows = await self._database.read(sql, (event_id,))
        return from_row(rows[0]) if rows else None

    async def stream(
        self, stream: str, *, from_version: int | None, backwards: bool, limit: int
    ) -> tuple[Sequence[StoredEvent], bool]:
        """Read events of a stream in order of version, or against it; tell whether there may be more."""
        order, sign = ("DESC", "<=") if backwards else ("ASC", ">=")
        start = from_version if from_version is not None else (2**62 if backwards else 1)
        sql = (
            f"SELECT {COLUMNS} FROM log WHERE stream = ? AND version {sign} ? "  # noqa: S608
            f"ORDER BY version {order} LIMIT ?"
        )
        return await self._read_reply(sql, (stream, start), limit)

    async def query(self, query: LogQuery) -> tuple[Sequence[StoredEvent], bool]:
        """Search the log; tell whether there may be more."""
        where, parameters = _where(query)
        order = "DESC" if query.reverse else "ASC"
        sql = f"SELECT {COLUMNS} FROM log WHERE {where} ORDER BY seq {order} LIMIT ?"  # noqa: S608
        return await self._read_reply(sql, parameters, query.limit)

    async def _read_reply(
        self, sql: str, parameters: Sequence[Any], limit: int
    ) -> tuple[Sequence[StoredEvent], bool]:
        """Read at most ``limit`` events, and no more bytes than a reply takes."""

        def cut(connection: Connection) -> tuple[Sequence[StoredEvent], bool]:
            events: list[StoredEvent] = []
            size = 0
            for row in connection.execute(sql, (*parameters, limit)):
                event = from_row(row)
                size += len(event.data) + _REPLY_OVERHEAD
                if events and size > REPLY_BYTES:
                    return events, True
                events.append(event)
            return events, len(events) == limit

        async with self._database.reader() as reader:
            return await reader.run(cut)

    async def position_at(self, time_us: int) -> int:
        """Give the seq before the first event at or after a time; the head where there is none."""
        rows = await self._database.read(
            "SELECT coalesce((SELECT min(seq) - 1 FROM log WHERE time >= ?), (SELECT max(seq) FROM log), 0)",
            (time_us,),
        )
        return int(rows[0][0])


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


def _where(query: LogQuery) -> tuple[str, list[Any]]:
    terms: list[str] = []
    parameters: list[Any] = []

    def add(term: str, value: object) -> None:
        if value is not None:
            terms.append(term)
            parameters.append(value)

    add("stream = ?", query.stream)
    add("correlation_id = ?", query.correlation_id)
    add("actor = ?", query.actor)
    add("kind = ?", KINDS.index(query.kind) if query.kind else None)
    add("time >= ?", query.since_us)
    add("time < ?", query.until_us)
    add("seq < ?" if query.reverse else "seq > ?", query.after)
    if query.patterns:
        terms.append(
            "(" + " OR ".join("name = ?" if p[-1] != "*" else "name GLOB ?" for p in query.patterns) + ")"
        )
        parameters.extend(query.patterns)
    return " AND ".join(terms) or "1", parameters
