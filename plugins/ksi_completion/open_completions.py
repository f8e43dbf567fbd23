"""What the conductor knows of a completion that has no end yet."""

from dataclasses import dataclass
from typing import Protocol

from ksi_completion.live import Live
from ksi_completion.queue_manager import Entry
from ksi_completion.rows import Row
from ksi_completion.running import Attempt


class MakeAttempt(Protocol):
    """Make the work on a completion whose turn it is."""

    def __call__(self, row: Row, live: Live) -> Attempt:
        """Make it; nothing begins yet."""
        ...


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
    again_s: float = 0.0
    """How long it waits, where it is to be tried again."""
    faults: int = 0
    """Bugs that it met, of which the row may not know."""
