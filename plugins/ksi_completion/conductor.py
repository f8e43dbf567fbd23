"""The conductor: completions get their turn, run beside each other, and end, each exactly once."""

import asyncio
from collections.abc import Callable
from typing import Final

from ksi_common.clock import Clock
from ksi_completion.advancing import Advancing
from ksi_completion.dead_completions import DeadCompletions
from ksi_completion.next_tries import delay_s
from ksi_completion.open_completions import Open, OpenCompletions
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.recovery import Recovery
from ksi_completion.rows import Row
from ksi_completion.running import PROGRESS_S
from ksi_daemon.plugin import event_context

MAX_ENDING: Final = 1024
"""Ends that may be on their way to the disk; when there are more, nothing begins until it takes some."""
ENDERS: Final = 64
"""Completions that are ended at once without having had a turn."""


class Conductor:
    """Run what is open. ``serve`` does it; everything else works without it."""

    def __init__(
        self,
        *,
        clock: Clock,
        opened: OpenCompletions,
        advancing: Advancing,
        providers: ProviderManager,
        recovery: Recovery,
        dead: DeadCompletions,
        concurrency: int,
    ) -> None:
        self._clock = clock
        self._opened = opened
        self._queue = opened.queue
        self._advancing = advancing
        self._providers = providers
        self._recovery = recovery
        self._dead = dead
        self._wake = opened.wake
        self._concurrency = concurrency
        self._working: dict[str, Open] = {}
        self._unbegun: list[Open] = []
        """Stopped while they waited: to be ended."""
        self._enders = 0
        """At work on them."""
        self._is_draining = False
        self._idle = asyncio.Event()

    async def recover(self) -> None:
        """Take up what an earlier daemon left open."""
        await self._dead.load(self._take_up)
        now = self._clock.time_us()
        for entry, next_try_us, is_unwanted in await self._recovery.open_entries():
            one = self._opened.add(Open(entry, is_unwanted=is_unwanted, is_recovered=is_unwanted))
            if is_unwanted:
                self._unbegun.append(one)
            else:
                self._enqueue(one, delay_s(next_try_us, now))

    def stop(self, row: Row) -> None:
        """Stop a completion whose row says that this is wanted."""
        one = self._opened.get(row.request_id)
        if one is None:
            if row.request_id not in self._dead.names:
                return
            del self._dead.names[row.request_id]
            one = self._opened.add(Open(row.entry, row))
            self._unbegun.append(one)
        one.is_unwanted = True
        if one.attempt is not None:
            one.attempt.cancel()
        elif self._queue.remove(row.request_id) is not None:
            self._unbegun.append(one)
        # Else it is between the two, and looks whether it is wanted when it gets to work.
        self._wake.set()

    async def drain(self) -> None:
        """Begin nothing more; return when nothing is at work."""
        self._is_draining = True
        self._wake.set()
        await self._idle.wait()

    async def serve(self) -> None:
        """Give completions their turn for as long as the daemon runs."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_progress(), name="progress of completions")
            while True:
                self._wake.clear()
                while self._unbegun and self._enders < ENDERS:
                    self._enders += 1
                    self._begin(tasks, self._unbegun.pop(), self._note_ender)
                while (one := self._next()) is not None:
                    self._begin(tasks, one, self._release)
                await self._wake.wait()

    def _begin(self, tasks: asyncio.TaskGroup, one: Open, after: Callable[[Open], None]) -> None:
        work = tasks.create_task(
            self._advancing.advance(one, self._leave_slot), name=f"completion {one.entry.request_id}"
        )

        # Not in the task: one that is cancelled early enough runs nothing at all.
        def note_end(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                one.row = None
            self._opened.note_over(one)
            after(one)

        work.add_done_callback(note_end)

    def _next(self) -> Open | None:
        """Give the one whose turn it is, with a slot of its provider."""
        if self._is_draining:
            if self._queue.is_idle and not self._enders:
                self._idle.set()
            return None
        if len(self._working) >= self._concurrency or self._opened.ending >= MAX_ENDING:
            return None
        entry = self._queue.next(self._providers.has_room)
        if entry is None:
            return None
        self._providers.begin(entry.provider)
        one = self._working[entry.request_id] = self._opened[entry.request_id]
        one.is_working = True
        return one

    def _leave_slot(self, one: Open) -> None:
        if one.is_working:
            one.is_working = False
            del self._working[one.entry.request_id]
            self._providers.end(one.entry.provider)
            self._wake.set()

    def _release(self, one: Open) -> None:
        """Give the session's turn to who is next: the same one, where it has not ended."""
        self._leave_slot(one)
        again_s, one.again_s = one.again_s, 0.0
        if one.entry.request_id not in self._opened:
            self._queue.done(one.entry)
        elif one.is_unwanted:
            self._queue.done(one.entry)
            self._unbegun.append(one)
        else:
            self._opened.wait(one, again_s)
            self._ready_after(one, again_s)

    def _note_ender(self, one: Open) -> None:
        self._enders -= 1
        again_s, one.again_s = one.again_s, 0.0
        if one.entry.request_id in self._opened:
            asyncio.get_running_loop().call_later(again_s, self._end_again, one)
        self._wake.set()

    def _end_again(self, one: Open) -> None:
        self._unbegun.append(one)
        self._wake.set()

    def _take_up(self, row: Row) -> None:
        if row.request_id not in self._opened:  # else it is being cancelled, and ends
            self._enqueue(self._opened.add(Open(row.entry, row)), 0.0)

    def _enqueue(self, one: Open, again_s: float) -> None:
        self._queue.add(one.entry, is_delayed=again_s > 0)
        self._ready_after(one, again_s)

    def _ready_after(self, one: Open, again_s: float) -> None:
        if again_s > 0:
            asyncio.get_running_loop().call_later(again_s, self._queue.ready, one.entry.request_id)

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            for one in tuple(self._working.values()):
                if one.attempt is not None and one.row is not None:
                    with event_context(one.row.envelope()):
                        await one.attempt.tell_progress()
