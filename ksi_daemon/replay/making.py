"""The home of a sandbox: the log of the live one, the tables made of it, and how they differ."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ksi_common.envelope import StoredEvent
from ksi_common.paths import Paths
from ksi_common.records import record
from ksi_daemon.database import Connection
from ksi_daemon.database.apart import apart, attach, copy_table
from ksi_daemon.projections.rebuilders import Rebuilder
from ksi_daemon.replay.comparing import Compared, compare
from ksi_daemon.replay.rebuilding import PAGE, Rebuilding
from ksi_daemon.replay.snapshots import Snapshot, begin_with, keep

Progress = Callable[[Rebuilding, int], None]

_FACTS: Final = ("log_id", "former_logs", "horizon", "horizon_chain")


@record
class Plan:
    """What a sandbox is made of."""

    live: Paths
    sandbox: Paths
    migrations: Mapping[str, Mapping[int, str]]
    """Of each plugin."""
    rebuilders: Sequence[Rebuilder]
    upcast: Callable[[StoredEvent], None]
    snapshot: Snapshot | None = None
    """What the tables begin with."""
    keep: bool = False
    """Keep the tables as the next snapshot, where they are what is live; and nothing else: no log."""
    trust_live: bool = False
    """Then: where tables differ, keep those that are live."""


@dataclass(slots=True)
class Made:
    """What came of it."""

    applied: int
    position: int
    missing: int
    compared: Sequence[Compared] = field(default_factory=list)
    snapshot: Snapshot | None = None
    """What was kept."""


def make(plan: Plan, progress: Progress) -> Made:
    """Make the sandbox, up to a moment at which the live tables are looked at, too."""
    begin = begin_with(plan.snapshot, plan.live, plan.sandbox) if plan.snapshot else 0
    with apart(plan.sandbox.database, plan.migrations) as connection:
        attach(connection, plan.live.database, "live")
        if plan.keep:
            for table in ("log", "meta"):  # named so, they are the live ones from here on
                connection.execute(f"DROP TABLE main.{table}")
        work = Rebuilding(
            connection,
            plan.live.home,
            plan.rebuilders,
            plan.upcast,
            begin=begin,
            horizon=_horizon(connection),
        )
        copying = _Copying(connection, plan, work, progress)
        copying.advance(_head(connection))
        # The rest within one snapshot of what is live, so that all of it is of the same moment.
        connection.execute("BEGIN")
        head = _head(connection)
        copying.advance(head)
        compared = [
            compare(connection, each.plugin, table) for each in plan.rebuilders for table in each.tables
        ]
        if not plan.keep:
            _copy_facts(connection)
        elif plan.trust_live:
            for found in compared:
                if found.difference:
                    copy_table(connection, "live", found.table)
        connection.execute("COMMIT")
        connection.execute("DETACH live")
    made = Made(work.applied, work.position, work.missing, compared)
    if plan.keep and (plan.trust_live or not any(found.difference for found in compared)):
        tables = [table for each in plan.rebuilders for table in each.tables]
        made.snapshot = keep(plan.live, plan.sandbox, plan.migrations, tables, made.position)
    return made


class _Copying:
    """Copy the log, and apply what was copied."""

    def __init__(self, connection: Connection, plan: Plan, work: Rebuilding, progress: Progress) -> None:
        self._connection = connection
        self._plan = plan
        self._work = work
        self._progress = progress
        self._copied = _horizon(connection)

    def advance(self, until: int) -> None:
        """Go on to ``until``, page by page, and say how far it is."""
        more = self._copied < until
        while more:
            with _transaction(self._connection):
                self._copied, before = min(until, self._copied + PAGE), self._copied
                if not self._plan.keep:
                    self._copy(before, self._copied)
                if self._copied > self._work.position:
                    self._work.advance(self._copied)
            self._progress(self._work, until)
            more = self._copied < until

    def _copy(self, after: int, until: int) -> None:
        span = (after, until)
        self._connection.execute("INSERT INTO log SELECT * FROM live.log WHERE seq > ? AND seq <= ?", span)
        references = self._connection.execute(
            "SELECT json_extract(reference, '$.path') FROM log "
            "WHERE seq > ? AND seq <= ? AND json_valid(reference)",  # what is damaged names no file
            span,
        )
        for (path,) in references:
            if isinstance(path, str):
                _link(self._plan.live.home / path, self._plan.sandbox.home / path)


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """Commit the block, unless it is a part of something larger."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    yield
    connection.execute("COMMIT")


def _copy_facts(connection: Connection) -> None:
    for name in _FACTS:
        connection.execute("REPLACE INTO meta SELECT * FROM live.meta WHERE name = ?", (name,))
    connection.execute("INSERT INTO compacted_streams SELECT * FROM live.compacted_streams")


def _link(live: Path, sandbox: Path) -> None:
    """Have a file that never changes in the sandbox, too; what is missing stays missing."""
    if sandbox.exists() or not live.exists():
        return
    sandbox.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.link(live, sandbox)
    except OSError:  # another file system
        shutil.copyfile(live, sandbox)


def _horizon(connection: Connection) -> int:
    row = connection.execute("SELECT value FROM live.meta WHERE name = 'horizon'").fetchone()
    return int(row[0]) if row else 0


def _head(connection: Connection) -> int:
    (head,) = connection.execute("SELECT max(seq) FROM live.log").fetchone()
    return int(head or _horizon(connection))
