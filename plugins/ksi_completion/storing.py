"""What is owed to the disk: written as soon as that takes it, and until then for everyone to see."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from ksi_common.clock import Clock, format_time
from ksi_common.events.completion_parts import Unstored
from ksi_common.events.system import Check
from ksi_daemon.plugin import JsonValue, OperationalError

T = TypeVar("T")

log = structlog.get_logger()

FIRST_DELAY_S: Final = 0.1
MAX_DELAY_S: Final = 10.0
"""Between tries where nothing can be stored."""
URGENT_TRIES: Final = 5
"""After so many it is not the disk that was busy: a person must look."""


@dataclass(slots=True)
class _Owed:
    request_id: str
    session_id: str
    since_us: int
    error: str = ""
    tries: int = 0


class Storing:
    """Store what is owed, for as long as it takes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._owed: dict[str, _Owed] = {}

    async def stored(self, store: Callable[[], Awaitable[T]], *, request_id: str, session_id: str) -> T:
        """Store until it is done; what another try would not mend is raised."""
        delay_s = FIRST_DELAY_S
        try:
            while True:
                try:
                    return await store()
                except OperationalError as error:
                    self._note(request_id, session_id, error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, MAX_DELAY_S)
        finally:
            self._owed.pop(request_id, None)

    def unstored(self) -> Sequence[Unstored]:
        """Describe what the disk does not take, the oldest 100 at most."""
        return [
            Unstored(
                request_id=owed.request_id,
                session_id=owed.session_id,
                error=owed.error,
                tries=owed.tries,
                since=format_time(owed.since_us),
            )
            for owed in list(self._owed.values())[:100]
        ]

    def noted_in(self, health: Check) -> Check:
        """Say in a part's health what the disk does not take."""
        if not self._owed:
            return health
        status = "degraded" if health.status == "healthy" else health.status
        first = next(iter(self._owed.values()))
        detail: dict[str, JsonValue] = {"unstored": len(self._owed), "unstored_error": first.error}
        return Check(status=status, detail=health.detail | detail)

    def _note(self, request_id: str, session_id: str, error: OperationalError) -> None:
        if not error.retryable:
            raise error
        owed = self._owed.setdefault(request_id, _Owed(request_id, session_id, self._clock.time_us()))
        owed.error = error.message
        owed.tries += 1
        tell = log.error if owed.tries == URGENT_TRIES else log.warning
        tell("completion.not_stored", request_id=request_id, session_id=session_id, error=error.message)
