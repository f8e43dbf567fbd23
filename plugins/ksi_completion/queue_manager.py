"""Whose turn it is: first come first served within a session, one at a time; sessions side by side.

The queue mirrors the open rows of the database in memory: what is added here is on disk already.
"""

import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ksi_common.events.completion_parts import SessionQueue

MAX_LISTED = 1000
"""Sessions in one overview, and completions in one session's."""

Scope = Literal["queue", "session", "provider"]


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A completion that waits or runs. ``number``: the order of acceptance."""

    number: int
    request_id: str = field(compare=False)
    session_id: str = field(compare=False)
    provider: str = field(compare=False)
    priority: int = field(default=0, compare=False)

    @property
    def scopes(self) -> Sequence[tuple[Scope, str]]:
        """Name what may be paused, each of which keeps it from beginning."""
        return ("queue", ""), ("session", self.session_id), ("provider", self.provider)


class QueueManager:
    """Keep the order. Everything here is synchronous and on the loop.

    Among sessions the one goes first whose most urgent completion has the higher priority, then the one whose
    first completion waits longest. Thus nothing urgent waits for what is less so, but in its own session.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: dict[str, deque[Entry]] = {}
        self._running: dict[str, Entry] = {}
        """By session, who has its turn."""
        self._ready: dict[str, list[tuple[int, Entry]]] = {}
        """By provider, a heap of the firsts of sessions. May hold what is first no more."""
        self._queued: dict[str, Entry] = {}
        self._delayed: set[str] = set()
        """Of these, those whose time has not come."""
        self._ranked = 0
        """Of these, those whose priority is not the usual one."""
        self._paused: set[tuple[Scope, str]] = set()

    def __contains__(self, request_id: str) -> bool:
        """Tell whether a completion waits or runs."""
        return request_id in self._queued or any(
            entry.request_id == request_id for entry in self._running.values()
        )

    def __len__(self) -> int:
        return len(self._queued) + len(self._running)

    def is_queued(self, request_id: str) -> bool:
        """Tell whether a completion waits."""
        return request_id in self._queued

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queued)

    @property
    def delayed(self) -> int:
        """How many of them wait for their next try."""
        return len(self._delayed)

    @property
    def running(self) -> Sequence[Entry]:
        """Who has the turn of a session, in order of acceptance."""
        return sorted(self._running.values())

    @property
    def is_idle(self) -> bool:
        """Nobody has a turn."""
        return not self._running

    def add(self, entry: Entry, *, is_delayed: bool = False) -> None:
        """Let an accepted completion wait for its turn, and for ``ready`` where it is delayed."""
        waiting = self._waiting.setdefault(entry.session_id, deque())
        insort(waiting, entry)  # at the end, but for one that had its turn already
        self._queued[entry.request_id] = entry
        self._ranked += entry.priority != 0
        if is_delayed:
            self._delayed.add(entry.request_id)
        if waiting[0] is entry or entry.priority:
            self._offer(entry.session_id)

    def ready(self, request_id: str) -> None:
        """Say that the time of a delayed completion has come; nothing happens where it is gone."""
        if request_id in self._delayed:
            self._delayed.discard(request_id)
            self._offer(self._queued[request_id].session_id)

    def next(self, has_room: Callable[[str], bool]) -> Entry | None:
        """Take the completion that comes first among those whose session is free and provider has room."""
        if self._paused and ("queue", "") in self._paused:
            return None
        heads = [
            heap
            for provider, heap in self._ready.items()
            if heap and not self._is_paused("provider", provider) and has_room(provider) and self._trim(heap)
        ]
        if not heads:
            return None
        _, entry = heapq.heappop(min(heads, key=lambda heap: heap[0]))
        self._waiting[entry.session_id].popleft()
        self._forget(entry)
        self._running[entry.session_id] = entry
        return entry

    def done(self, entry: Entry) -> None:
        """Give the session's turn to its next."""
        del self._running[entry.session_id]
        self._advance(entry.session_id)
        self._wake()

    def put_back(self, entry: Entry, *, is_delayed: bool) -> None:
        """Let one that had the turn wait again, before all others of its session."""
        del self._running[entry.session_id]
        self.add(entry, is_delayed=is_delayed)
        self._wake()

    def remove(self, request_id: str) -> Entry | None:
        """Take a completion out that still waits; None where it does not."""
        entry = self._queued.get(request_id)
        if entry is not None:
            self._waiting[entry.session_id].remove(entry)
            self._forget(entry)
            self._advance(entry.session_id)
        return entry

    def pause(self, scope: Scope, name: str = "") -> None:
        """Give no turn to what this names; may be called twice."""
        self._paused.add((scope, name))

    def resume(self, scope: Scope, name: str = "") -> None:
        """Give turns again; may be called twice."""
        self._paused.discard((scope, name))
        if scope == "session":
            self._offer(name)
        self._wake()

    def position(self, entry: Entry) -> int:
        """Count what is before it in its session; nothing is, once it has its turn."""
        if self._running.get(entry.session_id) == entry:
            return 0
        ahead = sum(1 for other in self._waiting.get(entry.session_id, ()) if other < entry)
        return ahead + (entry.session_id in self._running)

    def session(self, session_id: str) -> tuple[Entry | None, Sequence[Entry]]:
        """Give who has a session's turn, and who waits for it, in order."""
        return self._running.get(session_id), tuple(self._waiting.get(session_id, ()))

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

    def _forget(self, entry: Entry) -> None:
        del self._queued[entry.request_id]
        self._delayed.discard(entry.request_id)
        self._ranked -= entry.priority != 0

    def _advance(self, session_id: str) -> None:
        if self._waiting.get(session_id):
            self._offer(session_id)
        else:
            self._waiting.pop(session_id, None)

    def _offer(self, session_id: str) -> None:
        """Put the first of a session among those who may have a turn, if it may."""
        waiting = self._waiting.get(session_id)
        if waiting and self._may_run(waiting[0]):
            heap = self._ready.setdefault(waiting[0].provider, [])
            heapq.heappush(heap, (self._rank(session_id), waiting[0]))
            self._wake()

    def _rank(self, session_id: str) -> int:
        """Give the place of a session by its most urgent completion; the lowest goes first."""
        return -max(entry.priority for entry in self._waiting[session_id]) if self._ranked else 0

    def _trim(self, heap: list[tuple[int, Entry]]) -> bool:
        """Have at the top one who may have a turn, under the rank of its session; False where nobody may."""
        while heap:
            rank, entry = heap[0]
            waiting = self._waiting.get(entry.session_id)
            if not waiting or waiting[0] is not entry or not self._may_run(entry):
                heapq.heappop(heap)
            elif (now := self._rank(entry.session_id)) > rank:
                heapq.heapreplace(heap, (now, entry))
            else:
                return True
        return False

    def _may_run(self, entry: Entry) -> bool:
        return (
            entry.session_id not in self._running
            and entry.request_id not in self._delayed
            and not self._is_paused("session", entry.session_id)
        )

    def _is_paused(self, scope: Scope, name: str) -> bool:
        return bool(self._paused) and (scope, name) in self._paused
