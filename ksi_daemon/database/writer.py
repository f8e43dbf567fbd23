"""The writer thread: whatever waits when it is free is one group, and one commit."""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final

from ksi_common.clock import Clock
from ksi_common.envelope import EventEnvelope, StoredEvent, set_current
from ksi_daemon.database.conditions import Conditions
from ksi_daemon.database.errors import StoreUnavailable, file_removed, is_fsync_failure, translate
from ksi_daemon.database.head_file import HeadFile
from ksi_daemon.database.log_writer import LogWriter
from ksi_daemon.database.transaction import Telling, Transaction, Unit
from ksi_daemon.database.upkeep import Upkeep
from ksi_daemon.database.wal import WalFile
from ksi_daemon.presence import Presence

MAX_GROUP: Final = 512
UNIT_LIMIT_S: Final = 0.25
_IDLE_S: Final = 0.2
FORCED_CHECKPOINT_BYTES: Final = 64 * 1024 * 1024
_FORCE_AGAIN_S: Final = 1.0
_LOOK_AGAIN_S: Final = 0.01
"""Between looks at the files while they are busy: each gives the GIL away."""
_FULL: Final = 2
"""What PRAGMA synchronous says."""
_NEVER: Final = float("inf")
_PROGRESS_STEPS: Final = 20_000

WARY_GROUPS: Final = 64
"""After a group that had to be run again, so many have savepoints: what fails once may fail again."""


class TransactionLost(Exception):
    """SQLite took the whole transaction back, with the units that did nothing wrong."""


class Spoiled(Exception):
    """A unit failed after it had changed something, and nothing sets it apart from the other units."""


@dataclass(slots=True, eq=False)
class Job:
    """A unit of work on its way through the writer."""

    unit: Unit[Any]
    envelope: EventEnvelope | None
    request_data: bytes | None
    """JSON of the request at work whose row is to be written with the unit."""
    answer: Callable[["Job"], None]
    """Told on the loop what became of the unit, once that is certain."""
    value: Any = None
    error: BaseException | None = None
    told: Sequence[StoredEvent] = ()
    after_commit: Sequence[Callable[[], None]] = ()

    def reset(self, error: BaseException | None = None) -> None:
        """Forget what became of the unit when it was run before."""
        self.value, self.error, self.told, self.after_commit = None, error, (), ()


class Writer(threading.Thread):
    """Own the one connection that writes, and that checkpoints.

    ``deliver`` is called in this thread with each group that is done (committed, or refused unit by unit)
    and the last seq on disk.
    ``fail`` is called once, when the disk refuses to sync, or to roll back: nothing is written after that.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        clock: Clock,
        file: Path,
        *,
        deliver: Callable[[Sequence[Job], int], None],
        fail: Callable[[Exception], None],
        head: HeadFile | None = None,
        home: Path | None = None,
    ) -> None:
        super().__init__(name="ksi-writer", daemon=True)
        self._connection = connection
        self._clock = clock
        self.file = Presence(file)
        self._wal = WalFile(file.with_name(file.name + "-wal"))
        self._uncheckpointed = False
        self._force_after = 0.0
        self._look_after = 0.0
        self._present_until = 0.0
        self._deliver = deliver
        self._fail = fail
        self._queue: SimpleQueue[Sequence[Job] | None] = SimpleQueue()
        self._unit_ends = _NEVER
        self._now_us = 0
        self._log = LogWriter(connection, home)
        self._upkeep = Upkeep(connection, self._log, head)
        self._conditions = Conditions()
        self._broken: Exception | None = None
        self._wary = 0
        """Groups to come whose units have savepoints from the start."""
        self.groups = 0
        self.units = 0
        connection.set_progress_handler(self._overdue, _PROGRESS_STEPS)

    @property
    def head(self) -> int:
        """The last seq on disk; exact only where the writer is idle."""
        return self._log.seq

    def submit(self, jobs: Sequence[Job]) -> None:
        """Hand jobs over; callable from any thread."""
        self._queue.put(jobs)

    def stop(self) -> None:
        """Finish what was handed over, then end the thread."""
        self._queue.put(None)

    def run(self) -> None:
        """Take what waits, commit it, deliver it; checkpoint when there is nothing to do."""
        stopping = False
        while not stopping:
            jobs, stopping = self._take()
            while jobs:
                group, jobs = jobs[:MAX_GROUP], jobs[MAX_GROUP:]
                self._commit(group)
                self._deliver(group, self._log.seq)
                # Whoever answers requests frees them: here that would keep the next group waiting.
                del group
                self._keep_up(self._upkeep.after_group)
            self._keep_wal_small()
        self._upkeep.close()
        self._checkpoint("PASSIVE")
        self._wal.close()
        self._connection.close()

    def _take(self) -> tuple[list[Job], bool]:
        jobs: list[Job] = []
        more = self._wait()
        while more is not None:
            jobs.extend(more)
            try:
                more = self._queue.get_nowait()
            except Empty:
                return jobs, False
        return jobs, True

    def _wait(self) -> Sequence[Job] | None:
        while self._broken is None and (self._uncheckpointed or self._upkeep.wanted):
            try:
                return self._queue.get(timeout=_IDLE_S)
            except Empty:
                self._keep_up(lambda: self._upkeep.when_idle(self._queue.empty))
                self._checkpoint("PASSIVE")
                self._wal.extend()
        return self._queue.get()

    def _commit(self, group: Sequence[Job]) -> None:
        self._conditions.begin_group()
        if self._broken is None:
            self.groups += 1
            self.units += len(group)
            try:
                self._commit_together(group)
            except TransactionLost:
                pass
            else:
                return
        for job in group:
            self._commit_alone(job)

    def _commit_together(self, group: Sequence[Job]) -> None:
        """Run units in one transaction: without savepoints, which cost much and are seldom needed."""
        if self._wary:
            self._wary -= 1
            self._transact(group, apart=True)
            return
        try:
            self._transact(group, apart=False)
        except Spoiled as spoiled:
            if self._broken is not None:
                raise TransactionLost from spoiled
            self._wary = WARY_GROUPS
            for job in group:
                job.reset()
            self._transact(group, apart=True)

    def _commit_alone(self, job: Job) -> None:
        """Run one unit in a transaction of its own: now what goes wrong is its own fault."""
        job.reset(self._broken)
        if self._broken is not None:
            return
        try:
            self._transact([job], apart=True)
        except TransactionLost as lost:
            job.told = job.after_commit = ()
            if job.error is None:
                cause = lost.__cause__
                job.error = translate(cause) if isinstance(cause, Exception) else cause

    def _transact(self, group: Sequence[Job], *, apart: bool) -> None:
        if not self._begin(group):
            return
        self._now_us = self._clock.time_us()  # of all that is told in this commit
        try:
            for job in group:
                if type(job.unit) is not Telling or not self._tell(job, job.unit):
                    self._run_unit(job, apart=apart)
            self._log.flush()
            self._meet_conditions()
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)
            raise TransactionLost from error
        except (TransactionLost, Spoiled) as lost:
            self._give_up(lost.__cause__)
            raise
        self._log.committed()
        self._uncheckpointed = True

    def _begin(self, group: Sequence[Job]) -> bool:
        """Open a transaction; where that fails no unit is to blame, and one by one would fare no better."""
        self._conditions.begin()
        try:
            self._look_at_file()
            self._connection.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, StoreUnavailable) as error:
            self._stop_if_unsynced(error)
            for job in group:
                job.error = translate(error)
            return False
        return True

    def _look_at_file(self) -> None:
        """Refuse to write to a file that nobody will find: SQLite looks for it without a WAL only."""
        now = monotonic()
        if now < self._present_until:
            return
        if not self.file.lasts:
            raise file_removed()
        self._present_until = now + _LOOK_AGAIN_S

    def _give_up(self, error: BaseException | None) -> None:
        self._stop_if_unsynced(error)
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._log.lost()
        except sqlite3.Error as worse:  # nobody knows any more what the connection holds
            self._log.give_up()  # or its end would be noted as the log's, and missed at the next start
            self._break_off(worse)

    def _meet_conditions(self) -> None:
        error = self._conditions.meet()
        if error is not None:
            raise TransactionLost from error

    def _tell(self, job: Job, unit: Telling[Any]) -> bool:
        """Do a unit that is nothing but an event; False where it takes more than that."""
        told = unit.alone(job.envelope, self._now_us)
        if told is None:
            return False
        mark = self._log.mark()
        set_current(job.envelope)  # for what the reply logs
        try:
            self._log.append(told)
            job.value = unit.reply(told, False)  # noqa: FBT003 -- its id is new, so it was not there
            job.told = (told,)
        except BaseException as error:  # noqa: BLE001 -- of whatever kind, it is its caller's
            self._log.take_back(mark)
            job.error = translate(error) if isinstance(error, Exception) else error
        return True

    def _run_unit(self, job: Job, *, apart: bool) -> None:
        mark = self._log.mark()
        changes = self._connection.total_changes
        transaction = Transaction(self._connection, self._log, self._now_us, job.envelope, apart=apart)
        self._unit_ends = monotonic() + UNIT_LIMIT_S
        set_current(job.envelope)  # for what the unit logs
        try:
            if job.request_data is not None and job.envelope is not None:
                transaction.record(job.envelope, job.request_data)
            value = job.unit(transaction)
            transaction.end_statements()
            transaction.check_alive()
            transaction.close(undo=False)
            job.value = value
        except BaseException as error:  # of whatever kind, it is its caller's
            job.error = translate(error) if isinstance(error, Exception) else error
            transaction.end_statements()
            if not self._connection.in_transaction:
                raise TransactionLost from error
            if not apart and (transaction.uncounted or self._connection.total_changes != changes):
                raise Spoiled from error
            self._log.take_back(mark)
            transaction.close(undo=True)
        else:
            job.told = transaction.told
            job.after_commit = transaction.after_commit
            if transaction.conditions is not None:
                self._conditions.add(transaction.conditions)
        finally:
            self._unit_ends = _NEVER

    def _overdue(self) -> int:
        return monotonic() > self._unit_ends

    def _keep_up(self, work: Callable[[], None]) -> None:
        if self._broken is not None:
            return
        try:
            work()
        except sqlite3.Error as error:  # it is tried again later; a disk that is full refuses units by itself
            self._stop_if_unsynced(error)
            if not self._is_sound():
                self._break_off(error)

    def _is_sound(self) -> bool:
        """Tell whether units can begin, and are synced: upkeep that failed may have stopped midway."""
        try:
            synchronous = self._connection.execute("PRAGMA synchronous").fetchone()
        except sqlite3.Error:
            return False
        return not self._connection.in_transaction and synchronous == (_FULL,)

    def _keep_wal_small(self) -> None:
        now = self._clock.monotonic()
        if now < self._look_after:
            return
        self._look_after = now + _LOOK_AGAIN_S
        if self._wal.has_grown():
            self._checkpoint("PASSIVE")
        if self._wal.size > FORCED_CHECKPOINT_BYTES and now > self._force_after:
            self._force_after = now + _FORCE_AGAIN_S
            self._checkpoint("TRUNCATE")

    def _checkpoint(self, mode: str) -> None:
        self._uncheckpointed = False
        try:
            self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            self._stop_if_unsynced(error)

    def _stop_if_unsynced(self, error: BaseException | None) -> None:
        if isinstance(error, sqlite3.Error) and is_fsync_failure(error):
            self._break_off(error)

    def _break_off(self, error: sqlite3.Error) -> None:
        if self._broken is None:
            self._broken = translate(error)
            self._fail(self._broken)
