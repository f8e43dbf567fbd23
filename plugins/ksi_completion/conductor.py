"""The conductor: completions get their turn, run beside each other, and end, each exactly once."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from ksi_common.clock import Clock
from ksi_common.events.completion import Failure, Proof, Step
from ksi_completion.dead_completions import MAX_FAULTS, DeadCompletions
from ksi_completion.ending import Ending, step_of
from ksi_completion.jobs import Jobs
from ksi_completion.live import Live
from ksi_completion.next_tries import NextTries, Setback, delay_s
from ksi_completion.open_completions import MakeAttempt, Open
from ksi_completion.outcomes import Again, Outcome
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.queue_manager import Entry, QueueManager
from ksi_completion.recovery import Recovery
from ksi_completion.responses import Responses
from ksi_completion.retry_manager import RetryManager
from ksi_completion.rows import ONE, Row, StoredMessage
from ksi_completion.running import PROGRESS_S, guarded
from ksi_daemon.plugin import Database, LeaseLost, OperationalError, Transaction, event_context

log = structlog.get_logger()

MAX_ENDING: Final = 1024
"""Ends that may be on their way to the disk; when there are more, nothing begins until it takes some."""
DISK_S: Final = 1.0
"""Between tries where the disk is not there to say what is to be done."""
ENDERS: Final = 64
"""Completions that are ended at once without having had a turn."""


class Conductor:
    """Run what is open. ``serve`` does it; everything else works without it."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        ending: Ending,
        providers: ProviderManager,
        responses: Responses,
        recovery: Recovery,
        retries: RetryManager,
        tries: NextTries,
        dead: DeadCompletions,
        jobs: Jobs,
        make_attempt: MakeAttempt,
        concurrency: int,
    ) -> None:
        self._database = database
        self._clock = clock
        self._ending = ending
        self._providers = providers
        self._responses = responses
        self._recovery = recovery
        self._retries = retries
        self._tries = tries
        self._dead = dead
        self._jobs = jobs
        self._make_attempt = make_attempt
        self._concurrency = concurrency
        self._wake = asyncio.Event()
        self.queue = QueueManager(self._wake.set)
        self._open: dict[str, Open] = {}
        self._working: dict[str, Open] = {}
        self._unbegun: list[Open] = []
        """Stopped while they waited: to be ended."""
        self._enders = 0
        """At work on them."""
        self._ending_count = 0
        self._is_draining = False
        self._idle = asyncio.Event()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    async def recover(self) -> None:
        """Take up what an earlier daemon left open."""
        await self._dead.load(self._take_up)
        now = self._clock.time_us()
        for (
            number,
            request_id,
            session_id,
            provider,
            priority,
            next_try_us,
            unwanted,
        ) in await self._recovery.open_rows():
            entry = Entry(number, request_id, session_id, provider, priority)
            one = self._open[request_id] = Open(
                entry, is_unwanted=bool(unwanted), is_recovered=bool(unwanted)
            )
            if unwanted:
                self._unbegun.append(one)
            else:
                self._enqueue(one, delay_s(next_try_us, now))

    def open(self, row: Row, ahead: int, prompt: Sequence[StoredMessage]) -> None:
        """Queue what is on disk; called in the order of acceptance."""
        self._open[row.request_id] = Open(row.entry, row, ahead=ahead)
        self._jobs.remember(row.request_id, prompt)
        self.queue.add(row.entry)

    def row(self, request_id: str) -> Row | None:
        """Give the row of an open completion, where it is at hand."""
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

    def stop(self, row: Row) -> None:
        """Stop a completion whose row says that this is wanted."""
        one = self._open.get(row.request_id)
        if one is None:
            if self._dead.names.pop(row.request_id, self) is self:
                return
            one = self._open[row.request_id] = Open(row.entry, row)
            self._unbegun.append(one)
        one.is_unwanted = True
        if one.attempt is not None:
            one.attempt.cancel()
        elif self.queue.remove(row.request_id) is not None:
            self._unbegun.append(one)
        # Else it is between the two, and looks whether it is wanted when it gets to work.
        self._wake.set()

    def is_waiting(self, request_id: str) -> bool:
        """Tell whether it has yet to have its turn, whatever its row says of the daemon before."""
        return self.queue.is_queued(request_id)

    def is_ending(self, request_id: str) -> bool:
        """Tell whether it is known what comes of a completion, and the disk has yet to take it."""
        one = self._open.get(request_id)
        return one is not None and one.is_ending

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
                while (entry := self._next()) is not None:
                    one = self._working[entry.request_id] = self._open[entry.request_id]
                    one.is_working = True
                    self._begin(tasks, one, self._release)
                await self._wake.wait()

    def _begin(self, tasks: asyncio.TaskGroup, one: Open, after: Callable[[Open], None]) -> None:
        work = tasks.create_task(self._conduct(one), name=f"completion {one.entry.request_id}")

        # Not in the task: one that is cancelled early enough runs nothing at all.
        def note_end(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                one.row = None
            self._ending_count -= one.is_ending
            one.attempt, one.is_ending = None, False
            after(one)

        work.add_done_callback(note_end)

    def _next(self) -> Entry | None:
        if self._is_draining:
            if self.queue.is_idle and not self._enders:
                self._idle.set()
            return None
        if len(self._working) >= self._concurrency or self._ending_count >= MAX_ENDING:
            return None
        entry = self.queue.next(self._providers.has_room)
        if entry is not None:
            self._providers.begin(entry.provider)
        return entry

    async def _conduct(self, one: Open) -> None:
        """Bring a completion a step further; a bug on the way is its own matter."""
        bug = await guarded(self._attempt(one))
        if bug is not None and not self._waits_for_disk(one, bug):
            log.error("completion.bug", request_id=one.entry.request_id, exc_info=bug)
            worse = await guarded(self._after_bug(one, bug))
            if worse is not None and not self._waits_for_disk(one, worse):
                log.error("completion.given_up", request_id=one.entry.request_id, exc_info=worse)
                self._dead.names[one.entry.request_id] = None
                self._finish(one, worse)

    def _waits_for_disk(self, one: Open, error: Exception) -> bool:
        """Let it be tried again where the disk took nothing, or gave nothing: that is no bug."""
        if not isinstance(error, OperationalError) or not error.retryable:
            return False
        log.warning("completion.not_begun", request_id=one.entry.request_id, error=error.message)
        one.row, one.again_s = None, DISK_S
        return True

    async def _attempt(self, one: Open) -> None:
        row = await self._row_of(one)
        if row is None:
            return
        live = self.live(row)
        assert live is not None
        with event_context(row.envelope()):
            if one.is_recovered:
                proof = Proof(how="recovered", elapsed_s=0.0)
                outcome: Outcome | Again = Outcome(row.attempts, 0, proof=proof, failures=row.failures)
            else:
                one.attempt = self._make_attempt(row, live)
                if one.is_unwanted:
                    one.attempt.cancel()
                outcome = await one.attempt.outcome()
            if isinstance(outcome, Again):
                one.row, one.again_s = outcome.row, outcome.delay_s
            else:
                await self._end(one, row, outcome)

    async def _end(self, one: Open, row: Row, outcome: Outcome) -> None:
        # What others wait for is free already: only the session has yet to wait.
        self._leave_slot(one)
        if not one.is_ending:
            one.is_ending = True
            self._ending_count += 1
        try:
            last = await self._ending.end(row, outcome)
        except LeaseLost as lost:
            usage = outcome.answer.usage if outcome.answer else outcome.usage
            setback = Setback(reason="lease_lost", message=lost.message, usage=usage)
            one.row = await self._tries.note(replace(row, attempts=outcome.attempt), setback)
            return
        self._finish(one, last, row, outcome.answer.text if outcome.answer else None)

    async def _row_of(self, one: Open) -> Row | None:
        """Give the row of a completion, whose session is in order; None where it has ended meanwhile."""
        entry = one.entry
        for request_id, found in (await self._recovery.mend(entry.session_id)).items():
            other = self._open.get(request_id)
            if other is not None and isinstance(found, Step):
                self._finish(other, found)
            elif other is not None and isinstance(found, Row):
                other.row = found
        if entry.request_id not in self._open:
            return None
        if one.row is None:
            one.row = await self._read(entry.request_id)
        if one.row.reference is not None:
            # It had its end, and only the last step was not told.
            self._finish(one, await self.last_step(one.row))
            return None
        return one.row

    async def _after_bug(self, one: Open, bug: Exception) -> None:
        """Let it be tried again, fail it, or set it aside; its session goes on in any case."""
        lease = one.attempt.lease if one.attempt else None
        row = await self._read(one.entry.request_id)
        if row.reference is not None:
            self._finish(one, await self.last_step(row))
            return
        one.faults = max(one.faults, row.faults) + 1
        row = replace(row, faults=one.faults)
        message = f"{type(bug).__name__}: see the log"
        with event_context(row.envelope()):
            if one.faults < MAX_FAULTS:
                again_s = self._retries.delay_s(one.faults)
                setback = Setback(reason="bug", message=message, delay_s=again_s, lease=lease)
                one.row, one.again_s = await self._tries.note(row, setback), again_s
                return
            failure = Failure(reason="bug", message=message)
            outcome = Outcome(row.attempts, 0, failure=failure, failures=row.failures, lease=lease)
            worse = await guarded(self._end(one, row, outcome))
            if worse is not None:
                self._finish(one, await self._dead.set_aside(row, worse, lease))

    async def last_step(self, row: Row) -> Step:
        """Give the last step of a completion that has ended; raise DataLoss."""
        assert row.reference is not None
        line = await self._responses.read(row.reference)
        changed = None if row.provider_changed is None else bool(row.provider_changed)
        return step_of(row, line, row.reference, provider_changed=changed)

    async def _read(self, request_id: str) -> Row:
        """Read a row in the writer: an end that is under way, though nobody awaits it now, comes before."""

        def read(tx: Transaction) -> Row:
            return Row.of(tx.execute(ONE, (request_id,)).fetchone())

        return await self._database.write_apart(read)

    def _finish(
        self, one: Open, last: Step | Exception, row: Row | None = None, answer: str | None = None
    ) -> None:
        """Forget a completion that has ended, or that a bug keeps from it."""
        entry = one.entry
        self._open.pop(entry.request_id, None)
        self.queue.remove(entry.request_id)
        if row is None:  # not by its own way: what is known of its session may lack it
            self._jobs.forget(entry.session_id)
        self._jobs.ended(entry.request_id, entry.session_id, answer)
        if one.live is not None:
            one.live.end(last)

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
        if one.entry.request_id not in self._open:
            self.queue.done(one.entry)
        elif one.is_unwanted:
            self.queue.done(one.entry)
            self._unbegun.append(one)
        else:
            if one.row is not None:  # it may be another provider's by now
                one.entry = one.row.entry
            self._jobs.wait(one.entry.request_id)
            self.queue.put_back(one.entry, is_delayed=again_s > 0)
            self._ready_after(one, again_s)

    def _note_ender(self, one: Open) -> None:
        self._enders -= 1
        again_s, one.again_s = one.again_s, 0.0
        if one.entry.request_id in self._open:
            asyncio.get_running_loop().call_later(again_s, self._end_again, one)
        self._wake.set()

    def _end_again(self, one: Open) -> None:
        self._unbegun.append(one)
        self._wake.set()

    def _enqueue(self, one: Open, again_s: float) -> None:
        self.queue.add(one.entry, is_delayed=again_s > 0)
        self._ready_after(one, again_s)

    def _ready_after(self, one: Open, again_s: float) -> None:
        if again_s > 0:
            asyncio.get_running_loop().call_later(again_s, self.queue.ready, one.entry.request_id)

    def _take_up(self, row: Row) -> None:
        one = self._open[row.request_id] = Open(row.entry, row)
        self._enqueue(one, 0.0)

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            for one in tuple(self._working.values()):
                if one.attempt is not None and one.row is not None:
                    with event_context(one.row.envelope()):
                        await one.attempt.tell_progress()
