"""The daemon's child processes, as rows: which run, how they ended, and which a crash had left behind."""

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from ksi_common.clock import Clock
from ksi_daemon.plugin import Child, Database, Exit, OperationalError, Reaped, Transaction

log = structlog.get_logger()

KEPT: Final = 10_000
"""Rows of processes that have ended."""

_START: Final = (
    "INSERT INTO processes (pid, pid_started, boot_id, purpose, status, started_us) "
    "VALUES (?, ?, ?, ?, 'running', ?)"
)
_END: Final = (
    "UPDATE processes SET status = ?, ended_us = ?, exit_code = ?, exit_signal = ?, pids_gone = ? "
    "WHERE number = (SELECT max(number) FROM processes WHERE pid = ? AND pid_started = ? AND boot_id = ?)"
)
_LEFT: Final = "SELECT number, pid FROM processes WHERE status = 'running'"
_DEAD: Final = "UPDATE processes SET status = 'dead', ended_us = ?, pids_gone = ? WHERE number = ?"
_CROP: Final = (
    "DELETE FROM processes WHERE status != 'running' AND number <= (SELECT max(number) FROM processes) - ?"
)


class ChildRegistry:
    """Keep the rows; a ChildWatcher."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def bury(self, reaped: Sequence[Reaped]) -> None:
        """Note as dead what ran when an earlier daemon died: what of it survived was killed at this start."""
        found = {one.pid: one for one in reaped}
        now = self._clock.time_us()

        def bury(tx: Transaction) -> None:
            for number, pid in tx.execute(_LEFT).fetchall():
                gone = " ".join(map(str, found[pid].pids_gone)) if pid in found else ""
                tx.execute(_DEAD, (now, gone, number))
            tx.execute(_CROP, (KEPT,))

        await self._write(bury)

    async def child_started(self, child: Child) -> None:
        """Hear that one runs."""
        now = self._clock.time_us()
        row = (child.pid, child.started, child.boot_id, child.purpose, now)
        await self._write(lambda tx: tx.execute(_START, row))

    async def child_ended(self, child: Child, how: Exit, pids_gone: Sequence[int]) -> None:
        """Hear that nothing of it is left."""
        now = self._clock.time_us()
        status = "completed" if how.code == 0 else "failed"
        end = (status, now, how.code, how.signal, " ".join(map(str, pids_gone[:1000])))
        which = (child.pid, child.started, child.boot_id)
        await self._write(lambda tx: tx.execute(_END, (*end, *which)))

    async def _write(self, unit: Callable[[Transaction], object]) -> None:
        """Write what is good to know; where the disk takes nothing, the processes run all the same."""
        try:
            await self._database.write_apart(unit)
        except OperationalError as error:
            log.warning("process.not_noted", error=error.message)
