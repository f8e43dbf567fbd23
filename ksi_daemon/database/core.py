"""The database, as handlers have it: units of work in, rows out."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from ksi_common.async_db import AsyncSQLiteDB, Parameters, pragmas
from ksi_common.clock import Clock
from ksi_common.envelope import EventEnvelope, StoredEvent, current_envelope
from ksi_common.errors import FailedPrecondition, InternalError, KSIError, ResourceExhausted, Unavailable
from ksi_common.records import record
from ksi_common.strict_json import dumps
from ksi_daemon import blob_files
from ksi_daemon.database.errors import not_opened
from ksi_daemon.database.head_file import HeadFile
from ksi_daemon.database.log_facts import LogFacts, LostTail, keep_lost_tail, read_facts
from ksi_daemon.database.migrations import CORE, migrate, refuse_newer, scripts
from ksi_daemon.database.peeking import Peeking
from ksi_daemon.database.transaction import Transaction
from ksi_daemon.database.writer import Job, Writer
from ksi_daemon.explaining import PluginBug
from ksi_daemon.supervisor import for_each

T = TypeVar("T")

MAX_WAITING: Final = 100_000
"""Units that may wait for the writer."""
READERS: Final = 2


@record
class DatabaseStatistics:
    """Figures since the start."""

    waiting: int
    groups: int
    units: int
    head: int


class Database:
    """One SQLite file: ``write`` runs units of work in the one writer, ``read`` asks a pool of readers.

    ``published`` is called on the loop with the events of each commit, in commit order, and the last seq
    on disk, before anyone who waits for that commit goes on. ``failed`` is called once, when the disk
    refuses to sync.
    """

    def __init__(
        self,
        path: Path,
        *,
        backups: Path,
        clock: Clock,
        published: Callable[[Sequence[StoredEvent], int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.path = path
        self.home = path.parent.parent
        self.facts = LogFacts("")
        """Of the log: its id, where it begins, what it has lost."""
        self._backups = backups
        self._clock = clock
        self._published = published
        self._failed = failed
        self._waiting: list[Job] = []
        self._handed_over = 0
        self._closed = False
        self._readers: asyncio.LifoQueue[AsyncSQLiteDB] = asyncio.LifoQueue()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._exit = AsyncExitStack()
        blob_files.prepare(self.home)
        try:
            self._migrating = self._open()
        except sqlite3.Error as error:
            raise not_opened(error, self.path) from error
        try:
            await self._begin(self._migrating)
        except BaseException:
            await self._exit.aclose()
            self._migrating.close()
            raise
        return self

    async def _begin(self, connection: sqlite3.Connection) -> None:
        head = self.home / "run" / "head"
        head.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.facts = read_facts(connection, head)
        self._writer = Writer(
            connection,
            self._clock,
            self.path,
            deliver=self._deliver,
            fail=lambda error: self._threadsafe(self._failed, error),
            head=HeadFile(head, self.log_id),
            home=self.home,
        )
        self._head = self._writer.head
        for _ in range(READERS):
            reader = await self._exit.enter_async_context(AsyncSQLiteDB(self.path, read_only=True))
            self._readers.put_nowait(reader)
        self._peeking = Peeking(self.path)
        self._exit.callback(self._peeking.close)

    async def __aexit__(self, *_: object) -> None:
        self._hand_over()
        self._closed = True
        # The readers first: SQLite removes the WAL with the last connection, if that one can write.
        await self._exit.aclose()
        if self._writer.is_alive():
            self._writer.stop()
            # The thread ends after what it has in hand; a hung disk holds it, and then holds us.
            await self._loop.run_in_executor(None, self._writer.join)
        else:
            self._migrating.close()

    def migrate(self, component: str, migrations: Mapping[int, str]) -> int:
        """Bring a plugin's tables to their newest schema; before ``start`` only."""
        if self._writer.is_alive():
            raise FailedPrecondition("schemas change before the daemon serves", reason="started")
        return migrate(self._migrating, component, migrations, backups=self._backups)

    def start(self) -> None:
        """Let the writer write; no schema changes after this."""
        self._writer.start()

    @property
    def log_id(self) -> str:
        """Of this log; a cursor of another one is told apart by it."""
        return self.facts.log_id

    @property
    def in_place(self) -> bool:
        """Tell whether its file is where it was opened; while it is not, nothing is stored."""
        return self._writer.file.lasts

    @property
    def head(self) -> int:
        """The last seq that is surely on disk: what the writer has in hand has higher ones already."""
        return self._head

    @property
    def statistics(self) -> DatabaseStatistics:
        """Give figures since the start."""
        writer = self._writer
        return DatabaseStatistics(
            self._handed_over + len(self._waiting), writer.groups, writer.units, writer.head
        )

    def write(self, unit: Callable[[Transaction], T]) -> "asyncio.Future[T]":
        """Run ``unit`` in the writer; the awaitable gives what it returns, once that is on disk.

        The unit is synchronous, does SQL and ``tell`` only, may be run twice, and is interrupted after
        250 ms. Within a request that is not ``safe`` the request's own row joins the unit, and a second
        ``write`` is refused. Cancelling the await does not take the unit back.
        """
        envelope = current_envelope()
        data: bytes | None = None
        if envelope is not None:
            if envelope.to_record:
                data = self._claim(envelope)
            if envelope.joins is not None:
                unit = envelope.joins.around(unit)
        return self._submit(unit, envelope, data)

    def write_apart(self, unit: Callable[[Transaction], T]) -> "asyncio.Future[T]":
        """Run ``unit`` in a commit that is not the one of the request at work: what it does stands alone."""
        return self._submit(unit, current_envelope(), None)

    def keep_lost_tail(self, tx: Transaction, lost: LostTail) -> None:
        """Store what is known of a lost tail, within a unit."""
        tx.execute(*keep_lost_tail(lost))
        tx.on_commit(lambda: setattr(self.facts, "lost_tail", lost))

    def write_for(
        self, envelope: EventEnvelope, unit: Callable[[Transaction], object], answer: Callable[[Job], None]
    ) -> None:
        """Run ``unit`` as ``write`` would for the request at work; ``answer`` is called on the loop at last.

        Nobody awaits it: neither a task nor a future is made. ``answer`` may not raise.
        """
        self._enqueue(Job(unit, envelope, self._claim(envelope) if envelope.to_record else None, answer))

    def record(self, envelope: EventEnvelope, reply: object = None) -> "asyncio.Future[object]":
        """Write the row of a request whose handler wrote nothing; ``reply``: its answer, if that is known."""
        data = self._claim(envelope)
        unit = _nothing if envelope.joins is None else envelope.joins.answering(reply)
        return self._submit(unit, envelope, data)

    async def read(self, sql: str, parameters: Parameters = ()) -> Sequence[sqlite3.Row]:
        """Run a query on a connection of the pool; it sees what is committed."""
        async with self.reader() as reader:
            return await reader.fetch(sql, parameters)

    def peek(self, sql: str, parameters: Sequence[Any]) -> tuple[Any, ...] | None:
        """Read one row by its key, on the loop: for what has to be known before anything may wait."""
        return self._peeking.row(sql, parameters)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[AsyncSQLiteDB]:
        """Borrow a connection that cannot write. Read by pages: an open snapshot stops checkpoints."""
        reader = await self._readers.get()
        try:
            yield reader
        finally:
            self._readers.put_nowait(reader)

    def _claim(self, envelope: EventEnvelope) -> bytes:
        if envelope.recorded:
            raise PluginBug(f"the handler of {envelope.event} writes a second time; a request has one unit")
        envelope.recorded = True
        message = envelope.message
        if message is not None:
            return message.__pydantic_serializer__.to_json(message, by_alias=True)
        return dumps(envelope.data)

    def _submit(
        self, unit: Callable[[Transaction], T], envelope: EventEnvelope | None, data: bytes | None
    ) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self._loop.create_future()
        self._enqueue(Job(unit, envelope, data, partial(_resolve, future)))
        return future

    def _enqueue(self, job: Job) -> None:
        try:
            self._admit()
        except KSIError:
            _unclaim(job)
            raise
        if not self._waiting:
            # Once per turn of the loop: what this turn still brings goes along.
            self._loop.call_soon(self._hand_over)
        self._waiting.append(job)

    def _admit(self) -> None:
        if self._closed:
            raise Unavailable("the database is closed", reason="closed")
        if self._handed_over + len(self._waiting) >= MAX_WAITING:
            raise ResourceExhausted(
                f"{MAX_WAITING} units wait for the disk", reason="writer_full", retry_after_s=1
            )

    def _hand_over(self) -> None:
        if self._waiting:
            self._handed_over += len(self._waiting)
            self._writer.submit(self._waiting)
            self._waiting = []

    def _deliver(self, jobs: Sequence[Job], head: int) -> None:
        self._threadsafe(self._committed, jobs, head)

    def _threadsafe(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            if not self._loop.is_closed():
                raise

    def _committed(self, jobs: Sequence[Job], head: int) -> None:
        self._handed_over -= len(jobs)
        self._head = head
        # A callback or a subscriber that raises is reported by the loop, and keeps back nobody's answer.
        try:
            for_each((callback for job in jobs for callback in job.after_commit), lambda callback: callback())
        finally:
            try:
                told: list[StoredEvent] = []
                for job in jobs:
                    told += job.told
                self._published(told, head)
            finally:
                for job in jobs:
                    job.answer(job)

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        migrations = scripts(__package__ or "")
        refuse_newer(self.path, CORE, migrations)
        # The writer's connection is made here and used by one thread at a time.
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=1.0
        )
        try:
            self.path.chmod(0o600)
            for pragma in pragmas(read_only=False):
                connection.execute(pragma)
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            migrate(connection, CORE, migrations, backups=self._backups)
        except BaseException:
            connection.close()
            raise
        return connection


def _nothing(_: Transaction) -> None:
    """Stand in for a unit that does nothing: the request's row is all that is written."""


def _resolve(future: "asyncio.Future[T]", job: Job) -> None:
    if future.done():
        return
    if job.error is None:
        future.set_result(job.value)
        return
    _unclaim(job)
    future.set_exception(raisable(job.error))


def _unclaim(job: Job) -> None:
    """Take note that the row of a request went with its unit: another try, or its end, writes it."""
    if job.request_data is not None and job.envelope is not None:
        job.envelope.recorded = False


def raisable(error: BaseException) -> Exception:
    """Give what whoever waits for a unit is to be told of what it raised."""
    # A future, or the task that awaits it, cannot carry others; that unit has a bug all the same.
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = InternalError(f"a unit of work raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped
