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
        while True:
            try:
                async with asyncio.timeout(self._until_tomorrow_s()):
                    await self._is_due.wait()
            except TimeoutError:
                pass  # a day has begun
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

    def _until_tomorrow_s(self) -> float:
        now = datetime.fromtimestamp(self._clock.time_us() / 1e6, UTC)
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return (tomorrow - now).total_seconds()
