"""The completions that have no end yet: what is known of each, and who follows it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ksi_common.events.completion import Step, Usage
from ksi_common.events.completion_parts import Pause
from ksi_completion.jobs import Jobs
from ksi_completion.live import Live
from ksi_completion.pauses import told
from ksi_completion.queue_manager import Entry, QueueManager
from ksi_completion.rows import Row, StoredMessage
from ksi_completion.running import Attempt


@dataclass(slots=True, eq=False)
class Open:
    """What is known of a completion that has no end yet."""

    entry: Entry
    row: Row | None = None
    """None where it is to be read."""
    ahead: int = 0
    """Before it in its session, when it was accepted."""
    live: Live | None = None
    attempt: Attempt | None = None
    is_unwanted: bool = False
    is_working: bool = False
    """It has a slot of its provider."""
    is_ending: bool = False
    """It is known what comes of it."""
    is_recovered: bool = False
    """It was unwanted when the daemon before ended: nothing of it survived that."""
    unfit: str | None = None
    """An answer that did not fit, and is to be mended."""
    again_s: float = 0.0
    """How long it waits, where it is to be tried again."""
    faults: int = 0
    """Bugs that it met, of which the row may not know."""
    usage: Usage | None = None
    """What its attempt cost, which the ledger has with the end of that."""
    on_ending: set[Callable[[], None]] = field(default_factory=set)
    """Called when it is known what comes of it."""

    def paused(self, pause: Pause) -> Mapping[str, str]:
        """Give the fields of the step that says why it does not begin."""
        reason, message = told(pause)
        named = {"request_id": self.entry.request_id, "session_id": self.entry.session_id}
        return {**named, "reason": reason, "message": message}


class OpenCompletions:
    """All of them, by their requests."""

    def __init__(self, jobs: Jobs) -> None:
        self.wake = asyncio.Event()
        """Set when there may be something to begin."""
        self.queue = QueueManager(self.wake.set)
        self._jobs = jobs
        self._open: dict[str, Open] = {}
        self.ending = 0
        """Ends that are on their way to the disk."""

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def __getitem__(self, request_id: str) -> Open:
        return self._open[request_id]

    def get(self, request_id: str) -> Open | None:
        """Give what is known of one; None where it has its end."""
        return self._open.get(request_id)

    def add(self, one: Open) -> Open:
        """Take one in."""
        self._open[one.entry.request_id] = one
        return one

    def enter(self, row: Row, ahead: int, prompt: Sequence[StoredMessage]) -> None:
        """Queue what is on disk; called in the order of acceptance."""
        self.add(Open(row.entry, row, ahead=ahead))
        self._jobs.remember(row.request_id, prompt)
        self.queue.add(row.entry)

    def row(self, request_id: str) -> Row | None:
        """Give the row of one, where it is at hand."""
        one = self._open.get(request_id)
        return one.row if one else None

    def live(self, row: Row) -> Live | None:
        """Give what one follows a completion by; None where it has its end, or a bug keeps it from that."""
        one = self._open.get(row.request_id)
        if one is not None and one.live is None:
            one.live = Live(
                {
                    "request_id": row.request_id,
                    "session_id": row.session_id,
                    "provider": row.provider,
                    "model": row.model,
                    "position": one.ahead,
                }
            )
        return one.live if one else None

    def is_waiting(self, request_id: str) -> bool:
        """Tell whether one has yet to have its turn, whatever its row says of the daemon before."""
        return self.queue.is_queued(request_id)

    def tell_paused(self, pause: Pause) -> None:
        """Tell who follows one that waits, and does so because of this from now on."""
        scope = (pause.scope, pause.name)
        for request_id, one in self._open.items():
            if one.live is not None and scope in one.entry.scopes and self.is_waiting(request_id):
                one.live.tell("paused", one.paused(pause))

    def is_ending(self, request_id: str) -> bool:
        """Tell whether it is known what comes of one, and the disk has yet to take it."""
        one = self._open.get(request_id)
        return one is not None and one.is_ending

    def note_ending(self, one: Open) -> None:
        """Count one whose end is on its way to the disk."""
        if not one.is_ending:
            one.is_ending = True
            self.ending += 1
            for call in tuple(one.on_ending):
                call()

    def note_over(self, one: Open) -> None:
        """Nobody works on one any more, for now."""
        if one.attempt is not None:
            one.attempt.close()
        self.ending -= one.is_ending
        one.attempt, one.is_ending = None, False

    def wait(self, one: Open, again_s: float) -> None:
        """Let one wait in its session for another turn."""
        if one.row is not None:  # it may be another provider's by now
            one.entry = one.row.entry
        self._jobs.wait(one.entry.request_id)
        self.queue.put_back(one.entry, is_delayed=again_s > 0)

    def finish(
        self, one: Open, last: Step | Exception, row: Row | None = None, answer: str | None = None
    ) -> None:
        """Forget one that has ended, or that a bug keeps from it, and tell who follows it."""
        entry = one.entry
        self._open.pop(entry.request_id, None)
        self.queue.remove(entry.request_id)
        if row is None:  # not by its own way: what is known of its session may lack it
            self._jobs.forget(entry.session_id)
        self._jobs.ended(entry.request_id, entry.session_id, answer)
        if one.live is not None:
            one.live.end(last)
