"""What is paused, by whom: kept on disk, and in the queue while the daemon runs."""

from collections.abc import Callable, Sequence
from typing import Final

from ksi_common.clock import Clock, format_time
from ksi_common.events.completion_parts import Pause
from ksi_common.events.completion_queue import CompletionPaused, CompletionResumed, PauseQueue, ResumeQueue
from ksi_completion.queue_manager import QueueManager, Scope
from ksi_daemon.plugin import Database, Transaction

ASKED: Final = "asked"
BUDGET: Final = "budget:"
"""Of the reason of a pause that a budget makes; its name follows."""

_PAUSE: Final = "INSERT OR IGNORE INTO completion_pauses VALUES (?, ?, ?, ?)"
_RESUME: Final = (
    "DELETE FROM completion_pauses WHERE scope = ?1 AND name = ?2 AND (?3 IS NULL OR reason = ?3) "
    "RETURNING reason"
)
_LIST: Final = "SELECT scope, name, reason, since_us FROM completion_pauses ORDER BY since_us, scope, name"

Key = tuple[Scope, str, str]
"""Scope, name and reason: what is paused for two reasons begins again when both are gone."""


class Pauses:
    """Hold parts of the queue, and let them go. ``load`` it once before it is asked.

    ``tell`` hears of each pause as it begins, for those who wait.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        queue: QueueManager,
        tell: Callable[[Pause], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._queue = queue
        self._tell = tell
        self._paused: dict[Key, int] = {}

    async def load(self) -> None:
        """Pause what was paused when the daemon before ended."""
        for scope, name, reason, since_us in await self._database.read(_LIST):
            self._note(scope, name, reason, since_us)

    def pause_in(self, tx: Transaction, scope: Scope, name: str, reason: str = ASKED) -> bool:
        """Pause something, in a unit of work; False where it was, for that reason."""
        now = self._clock.time_us()
        if not tx.execute(_PAUSE, (scope, name, reason, now)).rowcount:
            return False
        tx.tell(CompletionPaused(scope=scope, name=name, reason=reason))
        tx.on_commit(lambda: self._note(scope, name, reason, now))
        return True

    def resume_in(self, tx: Transaction, scope: Scope, name: str, reason: str | None = None) -> bool:
        """End a pause, in a unit of work, for any reason where none is given; False: there was none."""
        reasons = [row[0] for row in tx.execute(_RESUME, (scope, name, reason)).fetchall()]
        for ended in reasons:
            tx.tell(CompletionResumed(scope=scope, name=name, reason=ended))
        if reasons:
            tx.on_commit(lambda: self._end(scope, name, reasons))
        return bool(reasons)

    def listed(self, *names: tuple[Scope, str]) -> list[Pause]:
        """Describe what is paused; of these only, where some are given."""
        return [
            _pause(key, since_us) for key, since_us in self._paused.items() if not names or key[:2] in names
        ]

    def _note(self, scope: Scope, name: str, reason: str, since_us: int) -> None:
        key = (scope, name, reason)
        self._paused[key] = since_us
        self._queue.pause(scope, name)
        self._tell(_pause(key, since_us))

    def _end(self, scope: Scope, name: str, reasons: Sequence[str]) -> None:
        for reason in reasons:
            self._paused.pop((scope, name, reason), None)
        if not any(key[:2] == (scope, name) for key in self._paused):
            self._queue.resume(scope, name)


def scope_of(request: PauseQueue | ResumeQueue) -> tuple[Scope, str]:
    """Give what a request names."""
    if request.session_id is not None:
        return "session", request.session_id
    if request.provider is not None:
        return "provider", request.provider
    return "queue", ""


def told(pause: Pause) -> tuple[str, str]:
    """Give the reason, and the words for people, that who waits because of a pause is told."""
    if pause.reason.startswith(BUDGET):
        return "budget_exceeded", used_up(pause.reason.removeprefix(BUDGET))
    what = f"{pause.scope} {pause.name}" if pause.name else "the queue"
    return "paused", f"{what} is paused; completion:resume lets it go on"


def used_up(budget: str) -> str:
    """Say that there is no more of a budget, and what helps."""
    return f"budget {budget} is used up; budget:set gives more"


def _pause(key: Key, since_us: int) -> Pause:
    scope, name, reason = key
    return Pause(scope=scope, name=name, reason=reason, since=format_time(since_us))
