"""Whose turn it is: first come first served within a session, one at a time; sessions side by side.

The queue mirrors the open rows of the database in memory: what is added here is on disk already.
"""

import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ksi_common.events.completion import SessionQueue

MAX_LISTED = 1000
"""Sessions in one overview."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A completion that waits or runs. ``number``: the order of acceptance."""

    number: int
    request_id: str
    session_id: str
    provider: str


class QueueManager:
    """Keep the order. Everything here is synchronous and on the loop."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: dict[str, deque[Entry]] = {}
        self._running: dict[str, Entry] = {}
        self._ready: dict[str, list[Entry]] = {}
        """By provider, a heap: the first of each session in which nothing runs. May hold what was removed."""
        self._queued: dict[str, Entry] = {}

    def __contains__(self, request_id: str) -> bool:
        """Tell whether a completion waits or runs."""
        return request_id in self._queued or any(
            entry.request_id == request_id for entry in self._running.values()
        )

    def __len__(self) -> int:
        return len(self._queued) + len(self._running)

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queued)

    @property
    def running(self) -> Sequence[Entry]:
        """What is at work, in order of acceptance."""
        return sorted(self._running.values())

    def add(self, entry: Entry) -> None:
        """Let an accepted completion wait for its turn."""
        waiting = self._waiting.setdefault(entry.session_id, deque())
        insort(waiting, entry)  # at the end, but for one that had its turn already
        self._queued[entry.request_id] = entry
        if waiting[0] is entry and entry.session_id not in self._running:
            self._offer(entry)

    def next(self, has_room: Callable[[str], bool]) -> Entry | None:
        """Take the completion that waits longest among those whose session is free and provider has room."""
        heads = [heap for provider, heap in self._ready.items() if self._trim(heap) and has_room(provider)]
        if not heads:
            return None
        entry = heapq.heappop(min(heads, key=lambda heap: heap[0]))
        self._waiting[entry.session_id].popleft()
        del self._queued[entry.request_id]
        self._running[entry.session_id] = entry
        return entry

    def done(self, entry: Entry) -> None:
        """Give the session's turn to its next."""
        del self._running[entry.session_id]
        self._advance(entry.session_id)
        self._wake()

    def remove(self, request_id: str) -> Entry | None:
        """Take a completion out that still waits; None where it does not."""
        entry = self._queued.pop(request_id, None)
        if entry is not None:
            self._waiting[entry.session_id].remove(entry)
            self._advance(entry.session_id)
        return entry

    def position(self, entry: Entry) -> int:
        """Count what is before it in its session; nothing is, once it has its turn."""
        if self._running.get(entry.session_id) == entry:
            return 0
        ahead = sum(1 for other in self._waiting.get(entry.session_id, ()) if other < entry)
        return ahead + (entry.session_id in self._running)

    def sessions(self) -> list[SessionQueue]:
        """Describe the sessions that have something open, 1,000 at most."""
        names = list(dict.fromkeys((*self._running, *self._waiting)))[:MAX_LISTED]
        return [self._describe(name) for name in names]

    def _describe(self, session_id: str) -> SessionQueue:
        running = self._running.get(session_id)
        return SessionQueue(
            session_id=session_id,
            queued=len(self._waiting.get(session_id, ())),
            running=running.request_id if running else None,
        )

    def _advance(self, session_id: str) -> None:
        waiting = self._waiting.get(session_id)
        if not waiting:
            self._waiting.pop(session_id, None)
        elif session_id not in self._running:
            self._offer(waiting[0])

    def _offer(self, entry: Entry) -> None:
        heapq.heappush(self._ready.setdefault(entry.provider, []), entry)
        self._wake()

    def _trim(self, heap: list[Entry]) -> bool:
        """Drop from the top what was removed meanwhile, or stands there twice."""
        while heap and not self._is_first(heap[0]):
            heapq.heappop(heap)
        return bool(heap)

    def _is_first(self, entry: Entry) -> bool:
        if entry.session_id in self._running:
            return False
        waiting = self._waiting.get(entry.session_id)
        return waiting is not None and waiting[0] is entry
