"""A real database in a folder of the test's own, and what was heard of it."""

import asyncio
import sqlite3  # noqa: TID251 -- the writer is given its connection
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from ksi_common.async_db import pragmas
from ksi_common.clock import Clock, SystemClock
from ksi_common.envelope import EventEnvelope, StoredEvent
from ksi_daemon.database import Database, Transaction, Unit
from ksi_daemon.database.migrations import CORE, migrate, scripts
from ksi_daemon.database.writer import Job, Writer

THINGS: Mapping[int, str] = {1: "CREATE TABLE things (x UNIQUE);"}
"""A table of the tests: component ``test``."""


@dataclass
class Heard:
    """What the database published."""

    events: list[StoredEvent] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def publish(self, events: Sequence[StoredEvent], head: int) -> None:
        self.events.extend(events)
        self.heads.append(head)

    @property
    def seqs(self) -> list[int | None]:
        return [event.seq for event in self.events]

    @property
    def ids(self) -> list[str]:
        return [event.event_id for event in self.events]


@asynccontextmanager
async def opened(
    folder: Path,
    heard: Heard,
    *,
    published: Callable[[Sequence[StoredEvent], int], None] | None = None,
    clock: Clock | None = None,
    plugins: Sequence[str] = (),
) -> AsyncIterator[Database]:
    """Open and start a database with the table ``things``, and the tables of some plugins' packages."""
    database = Database(
        folder / "db" / "ksi.db",
        backups=folder / "backups",
        clock=clock or SystemClock(),
        published=published or heard.publish,
        failed=heard.failures.append,
    )
    async with database:
        database.migrate("test", THINGS)
        for package in plugins:
            database.migrate(package, scripts(package))
        database.start()
        yield database


async def group(database: Database, *units: Unit[Any]) -> list[Any]:
    """Write units that go to the writer together; give what each returned or raised."""
    futures = [database.write(unit) for unit in units]
    async with asyncio.timeout(30):
        await asyncio.wait(futures)
    return [future.exception() or future.result() for future in futures]


def jobs_of_requests(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Collect what requests have the database do from now on, and nothing that the daemon does by itself."""
    jobs: list[Job] = []
    enqueue = database._enqueue

    def enqueued(job: Job) -> None:
        if job.envelope is not None:
            jobs.append(job)
        enqueue(job)

    monkeypatch.setattr(database, "_enqueue", enqueued)
    return jobs


def tell(
    event_id: str | None = None, event: str = "demo:told", data: bytes = b"{}", **options: Any
) -> Unit[Any]:
    """Make a unit that tells one event."""
    return lambda tx: tx.tell_raw(event, data, event_id=event_id, **options)


def put(x: object) -> Unit[Any]:
    """Make a unit that inserts into ``things``."""

    def unit(tx: Transaction) -> object:
        tx.execute("INSERT INTO things VALUES (?)", (x,))
        return x

    return unit


def fill_the_disk(tx: Transaction) -> None:
    """Ask for more pages than there may be: SQLITE_FULL, of which SQLite takes the whole transaction back."""
    (pages,) = tx.execute("PRAGMA page_count").fetchone()
    tx.execute(f"PRAGMA max_page_count = {pages + 8}")
    try:
        tx.execute("INSERT INTO things VALUES (zeroblob(1000000))")
    finally:
        tx._connection.execute("PRAGMA max_page_count = 1073741823")


def interrupt_itself(tx: Transaction) -> None:
    """Write until the connection is interrupted, which is at once: the whole transaction is taken back."""
    connection = tx._connection

    def interrupt() -> int:
        connection.interrupt()
        return 1

    connection.create_function("interrupt", 0, interrupt)
    tx.execute(
        "WITH RECURSIVE n(i) AS (SELECT interrupt() UNION ALL SELECT i + 1 FROM n LIMIT 100000) "
        "INSERT INTO things SELECT -i FROM n"
    )


def writable(database: Database, *, is_so: bool) -> None:
    """Have the database take nothing, as on a disk that is full, or take it again."""
    # Not by a unit: where nothing is taken no unit begins.
    database._writer._connection.execute(f"PRAGMA query_only = {'OFF' if is_so else 'ON'}")


def envelope(event: str = "demo:ask", **facts: Any) -> EventEnvelope:
    """Make the envelope of a request that leaves a row in the log."""
    return EventEnvelope(event, {"n": 1}, facts.pop("event_id", "request-1"), "c1", to_record=True, **facts)


def nobody(job: Job) -> None:
    """Wait for no answer."""


class Bench:
    """The writer without a loop: groups in, jobs out."""

    def __init__(self, connection: sqlite3.Connection, path: Path, clock: Clock | None = None) -> None:
        self.connection = connection
        self.done: SimpleQueue[tuple[Sequence[Job], int]] = SimpleQueue()
        self.failures: list[Exception] = []
        self.writer = Writer(
            connection,
            clock or SystemClock(),
            path,
            deliver=lambda jobs, head: self.done.put((jobs, head)),
            fail=self.failures.append,
        )

    def group(self, *units: Unit[Any]) -> Sequence[Job]:
        """Have units run as one group; give their jobs, once they are done."""
        self.writer.submit([Job(unit, None, None, nobody) for unit in units])
        jobs, _ = self.done.get(timeout=30)
        return jobs


@contextmanager
def bench(
    folder: Path,
    *,
    connection_class: type[sqlite3.Connection] = sqlite3.Connection,
    clock: Clock | None = None,
) -> Iterator[Bench]:
    """Run a writer on a database of its own, with the table ``things``."""
    path = folder / "ksi.db"
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=0, factory=connection_class
    )
    for pragma in pragmas(read_only=False):
        connection.execute(pragma)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    migrate(connection, CORE, scripts("ksi_daemon.database"), backups=folder)
    migrate(connection, "test", THINGS, backups=folder)
    made = Bench(connection, path, clock)
    made.writer.start()
    try:
        yield made
    finally:
        made.writer.stop()
        made.writer.join(timeout=30)
        assert not made.writer.is_alive()


@contextmanager
def looking(path: Path) -> Iterator[sqlite3.Connection]:
    """Look into a database file from outside."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        yield connection
    finally:
        connection.close()


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask a database file from outside."""
    with looking(path) as connection:
        return connection.execute(sql).fetchall()
