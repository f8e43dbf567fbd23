"""When the daemon began, and how it is told to end."""

import os
from asyncio import Future
from collections.abc import Callable
from dataclasses import dataclass, field

from ksi_common.records import record


@record
class Stop:
    """Why the daemon stops, and how long running work has."""

    reason: str
    grace_s: float


@dataclass(slots=True, eq=False)
class Lifecycle:
    """Facts of this run. ``stopping`` is done once somebody asked for the end, or with what forces it."""

    version: str
    started: float
    """Monotonic seconds."""
    started_us: int
    stopping: Future[Stop]
    pid: int = field(default_factory=os.getpid)
    connections: Callable[[], int] = field(default=lambda: 0)
    """How many clients are connected."""

    def stop(self, reason: str, grace_s: float) -> None:
        """Ask for the end; the first one who asks says why."""
        if not self.stopping.done():
            self.stopping.set_result(Stop(reason, grace_s))

    def fail(self, error: Exception) -> None:
        """End now: nothing can be promised any more."""
        if not self.stopping.done():
            self.stopping.set_exception(error)
