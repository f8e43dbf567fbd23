"""Keys are forgotten when no retry may come any more: the oldest first, by slices."""

import asyncio
from typing import Final

import structlog

from ksi_common.clock import Clock
from ksi_common.errors import OperationalError
from ksi_daemon.database import Database
from ksi_daemon.keys import rows

log = structlog.get_logger()

SLICE: Final = 1000
"""Keys that are forgotten in one unit of work."""
PAUSE_S: Final = 0.05
"""Between two slices."""
MAX_SLEEP_S: Final = 3600.0
STORE_RETRY_S: Final = 60.0
"""How long a disk that takes nothing is waited for, each time: a key that stays longer does no harm."""


class KeyForgetting:
    """Remove keys after ``keep_s``, and at most an hour later."""

    def __init__(self, database: Database, clock: Clock, *, keep_s: float) -> None:
        self._database = database
        self._clock = clock
        self._keep_s = keep_s

    async def serve(self) -> None:
        """Forget what is old enough, for ever."""
        while True:
            await asyncio.sleep(self.rest_s())
            try:
                await self.forget()
            except OperationalError as error:
                log.warning("keys.not_forgotten", error=error.message, retry_after_s=STORE_RETRY_S)
                await asyncio.sleep(STORE_RETRY_S)

    async def forget(self) -> int:
        """Remove a slice; give how many keys that was."""
        before_us = self._clock.time_us() - round(self._keep_s * 1e6)
        return await self._database.write_apart(rows.forgetting(before_us, SLICE))

    def rest_s(self) -> float:
        """Give seconds until there is something to do."""
        oldest_us = rows.oldest(self._database)
        age_s = 0.0 if oldest_us is None else (self._clock.time_us() - oldest_us) / 1e6
        return min(max(self._keep_s - age_s, PAUSE_S), MAX_SLEEP_S)
