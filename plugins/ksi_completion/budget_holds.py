"""Sessions that wait for more of a budget: paused until one is set or removed, or a day begins."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from ksi_common.clock import Clock
from ksi_completion.pauses import BUDGET, Pauses
from ksi_daemon.plugin import Database, OperationalError, Transaction

log = structlog.get_logger()

AGAIN_S: Final = 1.0
"""Between tries where the disk does not take that they are let go."""
JUMP_S: Final = 60.0
"""A jump of the wall clock, as after a sleep of the machine, is noticed after this at the latest."""


class BudgetHolds:
    """Pause sessions for budgets; ``serve`` lets them go. What still does not fit is paused again."""

    def __init__(self, database: Database, clock: Clock, pauses: Pauses) -> None:
        self._database = database
        self._clock = clock
        self._pauses = pauses
        # What ksi.toml gives may be more than before the start.
        self._is_due = asyncio.Event()
        self._is_due.set()

    def hold_in(self, tx: Transaction, session_id: str, budget: str) -> None:
        """Hold a session, in a unit of work."""
        self._pauses.pause_in(tx, "session", session_id, BUDGET + budget)

    def release(self) -> None:
        """Let all of them try again, soon."""
        self._is_due.set()

    async def serve(self) -> None:
        """Let them go whenever there may be more of a budget."""
        tomorrow = self._tomorrow()
        while True:
            try:
                async with asyncio.timeout(min((tomorrow - self._now()).total_seconds(), JUMP_S)):
                    await self._is_due.wait()
            except TimeoutError:
                if self._tomorrow() == tomorrow:
                    continue
            tomorrow = self._tomorrow()
            self._is_due.clear()
            try:
                await self._let_go()
            except OperationalError as error:
                log.warning("budget.not_released", error=error.message)
                asyncio.get_running_loop().call_later(AGAIN_S, self.release)

    async def _let_go(self) -> None:
        held = [pause for pause in self._pauses.listed() if pause.reason.startswith(BUDGET)]
        if held:

            def resume(tx: Transaction) -> None:
                for pause in held:
                    self._pauses.resume_in(tx, pause.scope, pause.name, pause.reason)

            await self._database.write(resume)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.time_us() / 1e6, UTC)

    def _tomorrow(self) -> datetime:
        """Give when the next day begins."""
        return (self._now() + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
