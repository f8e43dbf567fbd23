"""Completions that wait for their next try: noted on disk, so that a restart keeps the time of it."""

from dataclasses import replace
from typing import Final

from ksi_common.clock import Clock, format_time
from ksi_common.events.budget import BudgetExceeded
from ksi_common.events.completion import CompletionRetrying, Usage
from ksi_common.events.completion_providers import CompletionFailover
from ksi_common.events.completion_queue import Retries, Retrying
from ksi_common.records import record
from ksi_completion.budgets import Budgets
from ksi_completion.circuit_breakers import Candidate
from ksi_completion.providers.interface import MAX_RETRY_AFTER_S
from ksi_completion.rows import Row
from ksi_completion.session_manager import SessionManager
from ksi_completion.storing import Storing
from ksi_completion.token_tracker import CallOutcome, TokenTracker
from ksi_daemon.plugin import Database, Lease, Transaction

MAX_LISTED: Final = 1000

_NOTE: Final = (
    "UPDATE completions SET state = 'queued', attempts = ?, failures = ?, faults = ?, next_try_us = ?, "
    "worked_ms = ?, last_reason = ?, last_message = ?, provider = ?, model = ? "
    "WHERE request_id = ? AND sha256 IS NULL"
)
_WAITING: Final = (
    "SELECT * FROM completions WHERE next_try_us IS NOT NULL AND sha256 IS NULL AND dead_us IS NULL "
    "AND (?1 IS NULL OR session_id = ?1) ORDER BY next_try_us LIMIT ?2"
)
_COUNT: Final = (
    "SELECT last_reason, count(*) FROM completions WHERE next_try_us IS NOT NULL AND sha256 IS NULL "
    "AND dead_us IS NULL AND (?1 IS NULL OR session_id = ?1) GROUP BY last_reason"
)


@record(kw_only=True)
class Setback:
    """Why a completion is to be tried again, and what is to be noted with it."""

    reason: str
    message: str
    delay_s: float = 0.0
    kind: str | None = None
    """The class of a provider's failure."""
    usage: Usage | None = None
    """What the attempt cost all the same."""
    lease: Lease | None = None
    """Of the session, which is given back."""
    is_session_lost: bool = False
    """The provider no longer knows its session."""
    asked: Candidate | None = None
    """Who was asked; the row says who is asked next."""
    is_failover: bool = False
    """That is another one, at once."""
    over: BudgetExceeded | None = None
    """The budget that it did not fit into: its session is paused."""


class NextTries:
    """Note that a completion is to be tried again, and list those that are."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        sessions: SessionManager,
        tokens: TokenTracker,
        budgets: Budgets,
        storing: Storing,
        attempts: int,
    ) -> None:
        self._database = database
        self._clock = clock
        self._sessions = sessions
        self._tokens = tokens
        self._budgets = budgets
        self._storing = storing
        self._attempts = attempts

    async def note(self, row: Row, setback: Setback) -> Row:
        """Put on disk, and tell, that ``row``, with its counts, waits; give it as it is then."""
        now = self._clock.time_us()
        row = replace(
            row,
            state="queued",
            next_try_us=now + round(setback.delay_s * 1e6),
            last_reason=setback.reason,
            last_message=setback.message,
        )

        def unit(tx: Transaction) -> None:
            self._note_in(tx, row, setback, time_us=now)

        await self._storing.stored(
            lambda: self._database.write(unit), request_id=row.request_id, session_id=row.session_id
        )
        return row

    async def status(self, session_id: str | None) -> Retries:
        """List what waits, the soonest first."""
        now = self._clock.time_us()
        rows = [Row.of(row) for row in await self._database.read(_WAITING, (session_id, MAX_LISTED))]
        counts = {row[0] or "": row[1] for row in await self._database.read(_COUNT, (session_id,))}
        return Retries(
            retrying=[_retrying(row, now) for row in rows],
            count=sum(counts.values()),
            attempts=self._attempts,
            by_reason=counts,
        )

    def _note_in(self, tx: Transaction, row: Row, setback: Setback, *, time_us: int) -> None:
        counts = (row.attempts, row.failures, row.faults, row.next_try_us, row.worked_ms)
        last = (row.last_reason, row.last_message, row.provider, row.model, row.request_id)
        tx.execute(_NOTE, (*counts, *last))
        if setback.lease is not None:
            self._sessions.give_back_in(tx, setback.lease)
        if setback.is_session_lost:
            self._sessions.forget_in(tx, row.session_id)
        asked = setback.asked or row.candidate
        if setback.usage is not None:
            called = replace(row, provider=asked.provider, model=asked.model)
            outcome: CallOutcome = "stopped" if setback.over else "failed"
            self._tokens.account_in(
                tx, called, setback.usage, attempt=row.attempts, time_us=time_us, outcome=outcome
            )
        stream = f"completion/{row.request_id}"
        if setback.over is not None:
            self._budgets.hold_in(tx, setback.over)
        elif not setback.is_failover:
            tx.tell(_retry_told(row, setback), stream=stream)
        if asked != row.candidate:
            tx.tell(_failover_told(row, asked, setback), stream=stream)


def _retry_told(row: Row, setback: Setback) -> CompletionRetrying:
    return CompletionRetrying(
        request_id=row.request_id,
        session_id=row.session_id,
        attempt=row.attempts,
        delay_s=setback.delay_s,
        reason=setback.reason,
        message=setback.message,
        kind=setback.kind,
        failures=row.failures,
    )


def _failover_told(row: Row, asked: Candidate, setback: Setback) -> CompletionFailover:
    return CompletionFailover(
        request_id=row.request_id,
        session_id=row.session_id,
        attempt=row.attempts,
        provider=row.provider,
        model=row.model,
        from_provider=asked.provider,
        from_model=asked.model,
        reason=setback.reason,
        message=setback.message,
    )


def delay_s(next_try_us: int | None, now_us: int) -> float:
    """Give the seconds until a next try; 0 where none is noted, or its time has come.

    More than a provider may wish for is of a clock that was set back since.
    """
    return min(max(0.0, ((next_try_us or 0) - now_us) / 1e6), MAX_RETRY_AFTER_S)


def _retrying(row: Row, now_us: int) -> Retrying:
    assert row.next_try_us is not None
    return Retrying(
        request_id=row.request_id,
        session_id=row.session_id,
        provider=row.provider,
        model=row.model,
        failures=row.failures,
        reason=row.last_reason or "",
        message=row.last_message or "",
        next_try=format_time(row.next_try_us),
        delay_s=round(delay_s(row.next_try_us, now_us), 3),
    )
