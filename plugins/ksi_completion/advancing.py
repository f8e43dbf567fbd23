"""One step further with a completion whose turn it is: an attempt, an end, or what is done about a bug."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from ksi_common.events.completion import Failure, Proof, Step
from ksi_completion.dead_completions import MAX_FAULTS, DeadCompletions
from ksi_completion.ending import Ending
from ksi_completion.next_tries import Setback
from ksi_completion.open_completions import Open, OpenCompletions
from ksi_completion.outcomes import Again, Outcome
from ksi_completion.recovery import Recovery
from ksi_completion.rows import ONE, Row
from ksi_completion.running import Attempt, Means, guarded
from ksi_daemon.plugin import LeaseLost, OperationalError, Transaction, event_context

log = structlog.get_logger()

DISK_S: Final = 1.0
"""Between tries where the disk is not there to say what is to be done."""


class Advancing:
    """Bring completions further; what becomes of one stands in what is known of it."""

    def __init__(
        self,
        *,
        means: Means,
        opened: OpenCompletions,
        ending: Ending,
        recovery: Recovery,
        dead: DeadCompletions,
    ) -> None:
        self._means = means
        self._opened = opened
        self._ending = ending
        self._recovery = recovery
        self._dead = dead

    async def advance(self, one: Open, answered: Callable[[Open], None]) -> None:
        """Bring one a step further; a bug on the way is its own matter.

        ``answered`` is called when it no longer needs its provider, and has yet to be stored.
        """
        bug = await guarded(self._attempt(one, answered))
        if bug is not None and not self._waits_for_disk(one, bug):
            log.error("completion.bug", request_id=one.entry.request_id, exc_info=bug)
            worse = await guarded(self._after_bug(one, bug, answered))
            if worse is not None and not self._waits_for_disk(one, worse):
                log.error("completion.given_up", request_id=one.entry.request_id, exc_info=worse)
                self._dead.names[one.entry.request_id] = None
                self._opened.finish(one, worse)

    def _waits_for_disk(self, one: Open, error: Exception) -> bool:
        """Let it be tried again where the disk took nothing, or gave nothing: that is no bug."""
        if not isinstance(error, OperationalError) or not error.retryable:
            return False
        log.warning("completion.not_begun", request_id=one.entry.request_id, error=error.message)
        one.row, one.again_s = None, DISK_S
        return True

    async def _attempt(self, one: Open, answered: Callable[[Open], None]) -> None:
        one.usage = None
        row = await self._row_of(one)
        if row is None:
            return
        live = self._opened.live(row)
        assert live is not None
        with event_context(row.envelope()):
            if one.is_recovered:
                proof = Proof(how="recovered", elapsed_s=0.0)
                outcome: Outcome | Again = Outcome(row.attempts, 0, proof=proof, failures=row.failures)
            else:
                one.attempt = Attempt(row, live, self._means, unfit=one.unfit)
                if one.is_unwanted:
                    one.attempt.cancel()
                outcome = await one.attempt.outcome()
            if isinstance(outcome, Again):
                one.row, one.again_s, one.unfit = outcome.row, outcome.delay_s, outcome.unfit
            else:
                await self._end(one, row, outcome, answered)

    async def _end(self, one: Open, row: Row, outcome: Outcome, answered: Callable[[Open], None]) -> None:
        # What others wait for is free already: only the session has yet to wait.
        answered(one)
        self._opened.note_ending(one)
        one.usage = outcome.answer.usage if outcome.answer else outcome.usage
        try:
            last = await self._ending.end(row, outcome)
        except LeaseLost as lost:
            setback = Setback(reason="lease_lost", message=lost.message, usage=one.usage)
            one.row = await self._means.tries.note(replace(row, attempts=outcome.attempt), setback)
            return
        self._opened.finish(one, last, row, outcome.answer.text if outcome.answer else None)

    async def _row_of(self, one: Open) -> Row | None:
        """Give the row of a completion, whose session is in order; None where it has ended meanwhile."""
        entry = one.entry
        for request_id, found in (await self._recovery.mend(entry.session_id)).items():
            other = self._opened.get(request_id)
            if other is not None and isinstance(found, Step):
                self._opened.finish(other, found)
            elif other is not None and isinstance(found, Row):
                other.row = found
        if entry.request_id not in self._opened:
            return None
        if one.row is None:
            one.row = await self._read(entry.request_id)
        if one.row.reference is not None:
            # It had its end, and only the last step was not told.
            self._opened.finish(one, await self._ending.last_step(one.row))
            return None
        return one.row

    async def _after_bug(self, one: Open, bug: Exception, answered: Callable[[Open], None]) -> None:
        """Let it be tried again, fail it, or set it aside; its session goes on in any case."""
        lease = one.attempt.lease if one.attempt else None
        row = await self._read(one.entry.request_id)
        if row.reference is not None:
            self._opened.finish(one, await self._ending.last_step(row))
            return
        one.faults = max(one.faults, row.faults) + 1
        row = replace(row, faults=one.faults)
        message = f"{type(bug).__name__}: see the log"
        with event_context(row.envelope()):
            if one.faults < MAX_FAULTS:
                again_s = self._means.retries.delay_s(one.faults)
                setback = Setback(
                    reason="bug", message=message, delay_s=again_s, lease=lease, usage=one.usage
                )
                one.row, one.again_s = await self._means.tries.note(row, setback), again_s
                return
            failure = Failure(reason="bug", message=message)
            outcome = Outcome(
                row.attempts, 0, failure=failure, failures=row.failures, usage=one.usage, lease=lease
            )
            worse = await guarded(self._end(one, row, outcome, answered))
            if worse is not None:
                self._opened.finish(one, await self._dead.set_aside(row, worse, lease, one.usage))

    async def _read(self, request_id: str) -> Row:
        """Read a row in the writer: an end that is under way, though nobody awaits it now, comes before."""

        def read(tx: Transaction) -> Row:
            return Row.of(tx.execute(ONE, (request_id,)).fetchone())

        return await self._means.database.write_apart(read)
