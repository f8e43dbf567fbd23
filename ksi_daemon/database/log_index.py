"""The indexes of the log by name, correlation, actor and time: filled behind the writer's back, in slices.

In the commit each further index would cost a fifth of the write rate. So it has none; the rows are indexed
when the writer is idle, and readers scan the few that are not yet. A slice is a commit of its own that does
not wait for the disk: lost with the power, it is made again.
"""

import sqlite3
from collections.abc import Callable
from time import monotonic
from typing import Final

BLOCK: Final = 1024
"""Positions that share one row of ``log_times``."""
SLICE: Final = 1000
"""Rows indexed at once: a few milliseconds."""
WORTHWHILE: Final = 1000
"""Rows that wait before an idle writer begins: each slice is a commit, and scanning them costs nothing."""
OVERDUE: Final = 16_000
"""Rows that wait before a busy writer indexes a slice after each group."""
_AGAIN_S: Final = 5.0
"""After a failure, of whatever kind."""

INDEXED_TO: Final = "SELECT coalesce((SELECT value FROM meta WHERE name = 'indexed_to'), 0)"

_FILL: Final = (
    "INSERT OR IGNORE INTO log_names SELECT name, seq FROM log WHERE seq > ? AND seq <= ? ORDER BY 1, 2",
    "INSERT OR IGNORE INTO log_correlations "
    "SELECT correlation_id, seq FROM log WHERE seq > ? AND seq <= ? ORDER BY 1, 2",
    "INSERT OR IGNORE INTO log_actors SELECT actor, seq FROM log WHERE seq > ? AND seq <= ? ORDER BY 1, 2",
    f"INSERT INTO log_times SELECT seq / {BLOCK}, min(time), max(time) FROM log WHERE seq > ? AND seq <= ? "  # noqa: S608
    "GROUP BY 1 ON CONFLICT (block) DO UPDATE SET "
    "earliest = min(earliest, excluded.earliest), latest = max(latest, excluded.latest)",
)
_DROP: Final = (
    "DELETE FROM log_names WHERE (name, seq) IN (SELECT name, seq FROM log WHERE seq > ? AND seq <= ?)",
    "DELETE FROM log_correlations WHERE (correlation_id, seq) IN "
    "(SELECT correlation_id, seq FROM log WHERE seq > ? AND seq <= ?)",
    "DELETE FROM log_actors WHERE (actor, seq) IN (SELECT actor, seq FROM log WHERE seq > ? AND seq <= ?)",
    f"DELETE FROM log_times WHERE block >= ? / {BLOCK} AND block < (? + 1) / {BLOCK}",  # noqa: S608
)


class LogIndex:
    """Index the log's rows in order. Owned by the writer thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.indexed_to: int = connection.execute(INDEXED_TO).fetchone()[0]
        self._not_before = 0.0

    def wanted(self, head: int) -> bool:
        """Tell whether an idle writer should index a slice."""
        return head - self.indexed_to >= WORTHWHILE and monotonic() >= self._not_before

    def overdue(self, head: int) -> bool:
        """Tell whether so many rows wait that a busy writer should index a slice, too."""
        return head - self.indexed_to >= OVERDUE and monotonic() >= self._not_before

    def fill(self, head: int) -> None:
        """Index the next slice, outside of any transaction; raise sqlite3.Error with nothing changed."""
        until = min(head, self.indexed_to + SLICE)
        self._not_before = monotonic() + _AGAIN_S
        self._connection.execute("PRAGMA synchronous = NORMAL")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for sql in _FILL:
                self._connection.execute(sql, (self.indexed_to, until))
            self._connection.execute("REPLACE INTO meta VALUES ('indexed_to', ?)", (until,))
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        finally:
            self._connection.execute("PRAGMA synchronous = FULL")
        self.indexed_to = until
        self._not_before = 0.0


def drop_indexed(execute: Callable[[str, tuple[int, int]], object], after: int, until: int) -> None:
    """Forget the rows of ``after < seq <= until``, which are still in the log and about to be deleted."""
    for sql in _DROP:
        execute(sql, (after, until))
