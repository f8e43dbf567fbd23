"""Observers that wait: they run beside the events that they observe, and hold up none."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import structlog

from ksi_daemon.explaining import explain
from ksi_daemon.supervisor import attempt_async

if TYPE_CHECKING:
    from ksi_daemon.children import Tasks

log = structlog.get_logger()

MAX_OBSERVING: Final = 256
"""Events that one observer may have at work."""

Call = Callable[[], Awaitable[None]]


class WaitingObserver:
    """Runs one observer of a plugin for many events at once; what is too much is passed over.

    ``run`` awaits a call of it; ``tasks`` gives where that is done, or None before the daemon serves.
    """

    def __init__(
        self, plugin: str, run: Callable[[Call], Awaitable[Any]], tasks: "Callable[[], Tasks | None]"
    ) -> None:
        self._plugin = plugin
        self._run = run
        self._tasks = tasks
        self._at_work = 0
        self._passed_over = 0

    def start(self, call: Call) -> None:
        """Run it for one event."""
        tasks = self._tasks()
        if tasks is None:
            return
        if self._at_work >= MAX_OBSERVING:
            self._passed_over += 1
            if self._passed_over == 1:
                log.error("observer.full", plugin=self._plugin, at_work=MAX_OBSERVING)
            return
        self._at_work += 1
        tasks.create_task(self._observe(call))

    async def _observe(self, call: Call) -> None:
        try:
            error = await attempt_async(lambda: self._run(call))
            if isinstance(error, BaseException):
                log.error("observer.failed", plugin=self._plugin, error=explain(error))
        finally:
            self._at_work -= 1
