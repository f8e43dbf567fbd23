"""Answers to questions about the log: by its indexes as far as they are filled, by looking beyond that.

Whatever way is taken, each row is held against the whole question again, in the order of the log: the
indexes decide what is looked at, never what is found.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import orjson

from ksi_common.records import record
from ksi_daemon.database import Connection, Error
from ksi_daemon.database.log_index import BLOCK, INDEXED_TO
from ksi_daemon.database.log_rows import Damage, Row, is_damage, look_at_each
from ksi_daemon.database.log_writer import KINDS, READ

_AT_ONCE: Final = 256
"""Rows looked up by their positions in one statement."""
_MERGED: Final = 128
"""Names whose positions are merged one by one; those of more are sorted."""
_PROBED: Final = 2000
"""Rows of an index counted to find out which one has fewer."""
_FIRST, _LAST = 0, 2**62

_NAMES: Final = (
    "WITH RECURSIVE found (name) AS ("
    "SELECT min(name) FROM log_names WHERE name >= ?1 AND name < ?2 UNION ALL "
    "SELECT (SELECT min(name) FROM log_names WHERE name > found.name AND name < ?2) FROM found "
    "WHERE found.name IS NOT NULL) "
    "SELECT name FROM found WHERE name IS NOT NULL"
)
_BLOCKS: Final = "SELECT block FROM log_times WHERE latest >= ? AND earliest < ? AND block BETWEEN ? AND ?"


@record
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

    @property
    def timed(self) -> bool:
        """Tell whether a time is asked for."""
        return self.since_us is not None or self.until_us is not None


def search(
    connection: Connection, query: LogQuery, damaged: Callable[[Damage], None], head: int
) -> Iterator[Row]:
    """Yield at most ``limit`` rows that answer ``query``, in its order, read as they are taken.

    Where the file is broken it goes on block by block, and says to ``damaged`` what it cannot read up to
    ``head``.
    """
    return islice(_around_damage(_Search(connection, query), query.after, damaged, head), query.limit)


def _around_damage(
    searching: "_Search", last: int | None, damaged: Callable[[Damage], None], head: int
) -> Iterator[Row]:
    try:
        for row in searching.rows():
            last = row[0]
            yield row
    except Error as error:
        if not is_damage(error):
            raise
        yield from searching.around_damage(last, damaged, head)


class _Search:
    """One question, and the ways to its answer."""

    def __init__(self, connection: Connection, query: LogQuery) -> None:
        self._connection = connection
        self._query = query
        self._order = "DESC" if query.reverse else "ASC"
        self._where, self._parameters = _where(query)

    def rows(self) -> Iterator[Row]:
        query = self._query
        if query.stream is not None:
            return self._of_stream(query.stream)
        if query.timed or query.correlation_id is not None or query.actor is not None or self._named:
            return self._by_index()
        return self._between(_FIRST, _LAST)

    @property
    def _named(self) -> bool:
        return bool(self._query.patterns) and "*" not in self._query.patterns

    def _between(self, low: int, high: int) -> Iterator[Row]:
        """Look at every row of ``low <= seq <= high``."""
        sql = (
            f"SELECT {READ} FROM log WHERE {self._where} AND seq BETWEEN ? AND ? "  # noqa: S608
            f"ORDER BY seq {self._order}"
        )
        return self._connection.execute(sql, (*self._parameters, low, high))

    def _of_stream(self, stream: str) -> Iterator[Row]:
        """Use the index that the log has: versions and positions of a stream grow together."""
        edge: list[int] = []
        if self._query.after is not None:
            at = "SELECT version FROM log WHERE seq = ? AND stream = ?"
            found = self._connection.execute(at, (self._query.after, stream)).fetchone()
            edge = [found[0]] if found else []
        beyond = f"AND version {'<' if self._query.reverse else '>'} ? " if edge else ""
        sql = (
            f"SELECT {READ} FROM log INDEXED BY log_stream WHERE {self._where} {beyond}"  # noqa: S608
            f"ORDER BY version {self._order}"
        )
        return self._connection.execute(sql, (*self._parameters, *edge))

    def _by_index(self) -> Iterator[Row]:
        indexed_to = int(self._connection.execute(INDEXED_TO).fetchone()[0])
        if self._query.reverse:
            yield from self._between(indexed_to + 1, _LAST)
            yield from self._indexed(indexed_to)
        else:
            yield from self._indexed(indexed_to)
            yield from self._between(indexed_to + 1, _LAST)

    def _indexed(self, indexed_to: int) -> Iterator[Row]:
        low, high = self._bounds(indexed_to)
        ways = self._ways(low, high)
        if not ways:
            yield from self._in_blocks(low, high)
        else:
            yield from self._at(
                min(ways, key=_Way.size).positions() if len(ways) > 1 else ways[0].positions()
            )

    def around_damage(self, last: int | None, damaged: Callable[[Damage], None], head: int) -> Iterator[Row]:
        """Look at every block beyond ``last``, and where that fails at every row."""
        reverse = self._query.reverse
        low, high = (_FIRST, head) if reverse else ((last or 0) + 1, head)
        if reverse and last is not None:  # it may be a cursor from far beyond the end
            high = min(high, last - 1)
        blocks = range(low // BLOCK, high // BLOCK + 1)
        for block in reversed(blocks) if reverse else blocks:
            first, end = max(low, block * BLOCK), min(high, block * BLOCK + BLOCK - 1)
            try:
                rows = list(self._between(first, end))
            except Error:
                seqs = range(first, end + 1)
                rows = list(look_at_each(self._one, reversed(seqs) if reverse else seqs, damaged))
            yield from rows

    def _one(self, seq: int) -> Row | None:
        return next(self._between(seq, seq), None)

    def _in_blocks(self, low: int, high: int) -> Iterator[Row]:
        """Look at every row of the blocks that have such times."""
        blocks = (*self._times(), low // BLOCK, high // BLOCK)
        for (block,) in self._connection.execute(f"{_BLOCKS} ORDER BY block {self._order}", blocks):
            yield from self._between(max(low, block * BLOCK), min(high, block * BLOCK + BLOCK - 1))

    def _bounds(self, indexed_to: int) -> tuple[int, int]:
        """Give the positions that can have an answer: by cursor, and by time."""
        low, high = _FIRST, indexed_to
        after = self._query.after
        if after is not None and self._query.reverse:
            high = min(high, after - 1)
        elif after is not None:
            low = after + 1
        if self._query.timed:
            sql = f"SELECT min(block), max(block) FROM ({_BLOCKS})"  # noqa: S608
            first, last = self._connection.execute(sql, (*self._times(), _FIRST, _LAST)).fetchone()
            if first is None:
                return 1, 0
            low, high = max(low, first * BLOCK), min(high, last * BLOCK + BLOCK - 1)
        return low, high

    def _times(self) -> tuple[int, int]:
        query = self._query
        return (
            query.since_us if query.since_us is not None else -_LAST,
            query.until_us if query.until_us is not None else _LAST,
        )

    def _ways(self, low: int, high: int) -> "list[_Way]":
        query = self._query
        if query.correlation_id is not None:  # nothing has fewer
            one = [query.correlation_id]
            return [
                _Way(self._connection, "log_correlations", "correlation_id", one, low, high, query.reverse)
            ]
        ways = []
        if query.actor is not None:
            ways.append(
                _Way(self._connection, "log_actors", "actor", [query.actor], low, high, query.reverse)
            )
        if self._named:
            names = _names(self._connection, query.patterns)
            ways.append(_Way(self._connection, "log_names", "name", names, low, high, query.reverse))
        return ways

    def _at(self, positions: Iterator[int]) -> Iterator[Row]:
        """Look at the rows of these positions, some at once."""
        sql = (
            f"SELECT {READ} FROM log WHERE {self._where} "  # noqa: S608
            f"AND seq IN (SELECT value FROM json_each(?)) ORDER BY seq {self._order}"
        )
        while some := list(islice(positions, min(_AT_ONCE, self._query.limit))):
            yield from self._connection.execute(sql, (*self._parameters, orjson.dumps(some).decode()))


@record
class _Way:
    """Positions of ``low <= seq <= high`` that an index has under any of ``keys``."""

    connection: Connection
    table: str
    column: str
    keys: Sequence[str]
    low: int
    high: int
    reverse: bool

    def size(self) -> int:
        """Count the positions, up to a limit that costs next to nothing."""
        sql = (
            f"SELECT count(*) FROM (SELECT 1 FROM {self.table} "  # noqa: S608
            f"WHERE {self.column} = ? AND seq BETWEEN ? AND ? LIMIT {_PROBED})"
        )
        sizes = (self.connection.execute(sql, (key, self.low, self.high)).fetchone()[0] for key in self.keys)
        return sum(islice(sizes, _MERGED))

    def positions(self) -> Iterator[int]:
        """Yield them in order, each once."""
        order = "DESC" if self.reverse else "ASC"
        bounds = (self.low, self.high)
        if len(self.keys) > _MERGED:
            some = f"{self.column} IN (SELECT value FROM json_each(?))"  # noqa: S608
            return self._seqs(some, order, (orjson.dumps(self.keys).decode(), *bounds))
        each = [self._seqs(f"{self.column} = ?", order, (key, *bounds)) for key in self.keys]
        return heapq.merge(*each, reverse=self.reverse)

    def _seqs(self, term: str, order: str, parameters: tuple[Any, ...]) -> Iterator[int]:
        sql = f"SELECT seq FROM {self.table} WHERE {term} AND seq BETWEEN ? AND ? ORDER BY seq {order}"  # noqa: S608
        return (row[0] for row in self.connection.execute(sql, parameters))


def _names(connection: Connection, patterns: Sequence[str]) -> Sequence[str]:
    """Give the names in the index that match: a trailing ``*`` is a range of names."""
    names: set[str] = set()
    for pattern in patterns:
        if pattern.endswith("*"):
            bounds = (pattern[:-1], pattern[:-1] + chr(0x10FFFF))
            names.update(name for (name,) in connection.execute(_NAMES, bounds))
        else:
            names.add(pattern)
    return sorted(names)


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
