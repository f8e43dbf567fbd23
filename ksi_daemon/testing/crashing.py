"""Crash at a chosen moment: a database that takes and tells nothing from then on, as if it was gone.

What SQLite has committed is there afterwards and what it has not is not, which is what ``kill -9`` leaves.
Nobody is answered any more, no handler goes on, nothing is cleaned up: the daemon is made anew.
"""

from collections.abc import Callable, Hashable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Literal

from ksi_common.messages import matches
from ksi_common.records import record
from ksi_daemon.daemon import Daemon
from ksi_daemon.database import Database, Transaction
from ksi_daemon.database.writer import Job
from ksi_daemon.hub import Tap

Moment = Literal["before_commit", "after_commit"]


@record
class CrashPoint:
    """When: as a unit of work of a matching event is about to commit, or has, and nobody knows yet."""

    moment: Moment
    pattern: str

    def is_met(self, job: Job) -> bool:
        """Tell whether a unit of work is the one."""
        return job.envelope is not None and matches(self.pattern, job.envelope.event)


class CrashingDatabase(Database):
    """A database that can be made to end at a point."""

    _point: CrashPoint | None = None
    _crash: Callable[[], None] | None = None
    crashed = False

    def arm(self, point: CrashPoint, crash: Callable[[], None]) -> None:
        """End at ``point``; ``crash`` is called on the loop then."""
        self._point, self._crash = point, crash

    def disarm(self) -> None:
        """Do not end."""
        self._point = None

    def _enqueue(self, job: Job) -> None:
        if self.crashed:  # nobody is there to take it
            return
        if self._point is not None:
            job.answer = partial(self._answer, job.answer)
            if self._point.is_met(job):
                job.unit = partial(_ending, job.unit, self._point.moment, self._end, object())
                self._point = None
        super()._enqueue(job)

    def _answer(self, answer: Callable[[Job], None], job: Job) -> None:
        if not self.crashed:
            answer(job)

    def _end(self, moment: Moment) -> None:
        """Be gone. Before the commit this is called in the writer's thread, afterwards on the loop."""
        self.crashed = True
        self._published = _tell_nobody
        if self._crash is not None:
            self._threadsafe(self._crash)
        if moment == "before_commit":
            raise Gone


class CrashableDaemon(Daemon):
    """A daemon that can be ended at a point of its database, and is heard from its first event on."""

    database_class = CrashingDatabase
    tap: Tap
    """Hears everything that is told."""

    async def _open_database(self, stack: AsyncExitStack) -> None:
        await super()._open_database(stack)
        self.heard = self.hub.attach(self.tap, ("*",), None)


class Gone(BaseException):
    """Keeps a unit from committing. It reaches nobody: what waits for the unit is gone, too."""


def _ending(
    unit: Callable[[Transaction], Any],
    moment: Moment,
    end: Callable[[Moment], None],
    key: Hashable,
    tx: Transaction,
) -> Any:
    value = unit(tx)
    if moment == "before_commit":
        tx.before_commit(key, partial(end, moment))
    else:
        tx.on_commit(partial(end, moment))
    return value


def _tell_nobody(*_: object) -> None:
    """Take the place of the hub."""
