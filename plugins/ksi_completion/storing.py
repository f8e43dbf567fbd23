"""What is owed to the disk, and is written as soon as that takes it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from ksi_daemon.plugin import OperationalError

T = TypeVar("T")

log = structlog.get_logger()

FIRST_DELAY_S: Final = 0.1
MAX_DELAY_S: Final = 5.0
"""Between tries where nothing can be stored."""


async def stored(store: Callable[[], Awaitable[T]], *, request_id: str) -> T:
    """Store until it is done; what another try would not mend is raised."""
    delay_s = FIRST_DELAY_S
    while True:
        try:
            return await store()
        except OperationalError as error:
            if not error.retryable:
                raise
            log.warning("completion.not_stored", request_id=request_id, error=error.message)
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, MAX_DELAY_S)
