"""One attempt at a completion: from its turn to an answer, a failure, or the proof that it was stopped."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, Final, TypeVar

import structlog

from ksi_common.clock import Clock
from ksi_common.events.budget import BudgetExceeded
from ksi_common.events.completion import (
    CompletionDelta,
    CompletionProgress,
    CompletionStarted,
    Failure,
    Proof,
    Usage,
)
from ksi_common.records import record
from ksi_completion import structured
from ksi_completion.budgets import Budgets
from ksi_completion.jobs import Jobs
from ksi_completion.live import PIECE, Live
from ksi_completion.next_tries import NextTries, Setback
from ksi_completion.outcomes import Again, Outcome
from ksi_completion.pauses import used_up
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.providers.interface import Answer, Generation, Job, ProviderFailure
from ksi_completion.reservations import OverBudget, Reservation
from ksi_completion.response_cache import ResponseCache
from ksi_completion.retry_manager import SESSION_BUSY, SESSION_LOST, RetryManager, failure_of
from ksi_completion.routes import SHUT
from ksi_completion.rows import Row
from ksi_completion.session_manager import Session, SessionManager
from ksi_completion.stall import Stall
from ksi_completion.storing import Storing
from ksi_daemon.plugin import Bus, Database, KSIError, Lease, LeaseHeld, OperationalError, Transaction

T = TypeVar("T")

log = structlog.get_logger()

_BEGIN: Final = (
    "UPDATE completions SET state = 'running', attempts = ?, started_us = coalesce(started_us, ?), "
    "next_try_us = NULL WHERE request_id = ?"
)

PROGRESS_S: Final = 5.0
"""Between words of an attempt that is at work and says nothing."""


_Came = Answer | ProviderFailure | OverBudget | Failure | None
"""What came of the work; None: it was stopped by wish."""


@record(kw_only=True)
class Means:
    """What all attempts work with."""

    database: Database
    bus: Bus
    clock: Clock
    providers: ProviderManager
    retries: RetryManager
    sessions: SessionManager
    tries: NextTries
    storing: Storing
    jobs: Jobs
    budgets: Budgets
    cache: ResponseCache
    stall: Stall


class Attempt:
    """Work once on a completion. ``outcome`` is awaited once; ``cancel`` may be called at any time.

    ``unfit``: the answer of the attempt before, where that did not fit.
    """

    def __init__(self, row: Row, live: Live, means: Means, *, unfit: str | None = None) -> None:
        self.row = row
        self._live = live
        self._means = means
        self._unfit = unfit
        self._reservation = Reservation(row)
        self._attempt = row.attempts
        self._began = self._wished = means.clock.monotonic()
        self._generation: Generation | None = None
        self._session = Session()
        self._lease: Lease | None = None
        self._scope: asyncio.Timeout | None = None
        """What the work is broken off by: a wish, silence, or the end of its time."""
        self._limit = 0.0
        """When its time ends, by the loop's clock."""
        self._is_unwanted = False
        self._is_silent = False
        self._has_said = False
        """Something of an answer came."""

    @property
    def lease(self) -> Lease | None:
        """The right to the session, where it is held, and nothing may be at work any more."""
        return self._lease

    def cancel(self) -> None:
        """Stop the work, if there is any left."""
        if not self._is_unwanted:
            self._is_unwanted = True
            self._wished = self._means.clock.monotonic()
            if self._scope is not None and not self._scope.expired():  # else it is being broken off already
                self._scope.reschedule(asyncio.get_running_loop().time())

    async def outcome(self) -> Outcome | Again:
        """Work until there is an answer, a failure, or the proof that it was stopped."""
        came: _Came = None
        try:
            if not self._is_unwanted:
                came = await self._means.providers.routes.call(self.row.candidate, self._work)
        finally:
            # Not where the work is: there its time, or a wish, would break it off.
            stopped = await self._stop()
        if isinstance(stopped, Failure):
            # Something may be at work yet: the session stays its own until that cannot be any more.
            self._lease = None
            return self._end(failure=stopped)
        if came is None or (self._is_unwanted and isinstance(came, ProviderFailure)):
            elapsed_s = round(self._means.clock.monotonic() - self._wished, 3)
            proof = stopped.model_copy(update={"elapsed_s": elapsed_s})
            return self._end(proof=proof, usage=came.usage if came is not None else None)
        if isinstance(came, Answer):
            return self._end(answer=came)
        if isinstance(came, Failure):
            return self._end(failure=came)
        if isinstance(came, OverBudget):
            return await self._after_budget(came.told)
        return await self._after_failure(came)

    def close(self) -> None:
        """Give back what is reserved for it yet: what came of it is on disk, and the ledger lacks nothing."""
        self._means.budgets.give_back(self.row.request_id)

    async def tell_progress(self) -> None:
        """Tell that it is at work, where nothing came since this was called before."""
        was_silent, self._is_silent = self._is_silent, True
        if was_silent:
            elapsed_s = self._means.clock.monotonic() - self._began
            self._live.tell("progress", self._named() | {"elapsed_s": elapsed_s})
            await self._means.bus.notify(CompletionProgress(**self._named(), elapsed_s=elapsed_s))

    async def _stop(self) -> Proof | Failure:
        """Return when nothing works on it any more, or where that cannot be had."""
        if self._generation is None:
            return Proof(how="between_attempts" if self.row.attempts else "not_started", elapsed_s=0.0)
        try:
            return await self._generation.cancel()
        except ProviderFailure as error:
            return failure_of(error)

    async def _work(self) -> _Came:
        try:
            # Not broken off by anything: who has begun must know it.
            self._session = await self._means.sessions.find(self.row.session_id)
            job = await self._job()
            self._reservation = await self._means.budgets.reserve(self.row, job.characters)
            await self._begin()
            if self._is_unwanted:
                return None
            async with asyncio.timeout(None) as scope:
                self._scope = scope
                return await self._answer(scope, job)
        except TimeoutError:
            return self._broken_off()
        except (ProviderFailure, OverBudget) as error:
            return error
        except KSIError as error:
            if self._lease is None and isinstance(error, OperationalError) and error.retryable:
                raise  # nothing has begun, and the disk may give tomorrow what it does not today
            reason = str(error.details.get("reason", error.code.lower()))
            return Failure(reason=reason, message=error.message, retryable=error.retryable)
        except Exception as error:
            # A bug of a provider ends the completion that met it, and no other.
            log.exception("completion.bug", request_id=self.row.request_id, provider=self.row.provider)
            return Failure(reason="bug", message=f"{type(error).__name__}: see the log")
        finally:
            self._scope = None

    def _broken_off(self) -> _Came:
        if self._is_unwanted:
            return None
        if asyncio.get_running_loop().time() >= self._limit:
            message = f"no answer within {self.row.timeout_s:g} s"
            return Failure(reason="timed_out", message=message, retryable=True)
        silent_s = self._means.stall.silent_s(is_first=not self._has_said)
        message = f"{self.row.provider} gave no output for {silent_s:g} s and was ended"
        return ProviderFailure(message, reason="stalled", kind="stalled")

    async def _job(self) -> Job:
        """Give what the provider is asked; after an answer that does not fit, for a better one."""
        row, provider = self.row, self._means.providers.get(self.row.provider)
        job = await self._means.jobs.make(
            row,
            self._session,
            attempt=self._attempt + 1,
            keeps_sessions=provider.keeps_sessions,
            left_s=self._left_s(),
        )
        if row.last_reason == structured.REASON:
            repaired = structured.repaired(job.messages, self._unfit, row.last_message or "")
            job = replace(job, messages=repaired, counted=None)
        if job.allowed_tools is not None and not provider.restricts_tools:
            raise ProviderFailure(
                f"provider {row.provider} cannot be held to allowed_tools",
                reason="cannot_restrict_tools",
                kind="not_deployed",
            )
        return job

    async def _answer(self, scope: asyncio.Timeout, job: Job) -> Answer:
        self._limit = asyncio.get_running_loop().time() + self._left_s()
        scope.reschedule(self._limit)
        cached = await self._means.cache.get(self.row.provider, job)
        if cached is not None:
            await self._tell_text(0, cached.text)
            return await self._fitted(job, cached)
        provider = self._means.providers.get(self.row.provider)
        self._generation = generation = await provider.start(job)
        self._hear(scope)
        index = 0
        async for text in generation.deltas():
            self._has_said = True
            self._hear(scope)
            index = await self._tell_text(index, text)
            self._reservation.grow(len(text))
        answer = await self._fitted(job, generation.answer)
        self._means.cache.put(self.row.provider, job, answer)
        return answer

    async def _fitted(self, job: Job, answer: Answer) -> Answer:
        """Give an answer with what its schema asked for; raise ProviderFailure where it does not fit."""
        if job.response_schema is None:
            return answer
        try:
            value = await structured.fit(job.response_schema, answer)
        except structured.Unfit as unfit:
            self._unfit = answer.text
            raise ProviderFailure(
                str(unfit), reason=structured.REASON, kind="invalid", usage=answer.usage
            ) from None
        return replace(answer, structured=value, response={**answer.response, structured.FIELD: value})

    def _hear(self, scope: asyncio.Timeout) -> None:
        """Take a sign of life: from now on it may be silent for as long as it ever may."""
        if not self._is_unwanted:
            silent_s = self._means.stall.silent_s(is_first=not self._has_said)
            scope.reschedule(min(self._limit, asyncio.get_running_loop().time() + silent_s))

    async def _tell_text(self, index: int, text: str) -> int:
        """Tell a piece of the answer, in pieces that a frame takes; give the index of the next."""
        for begin in range(0, len(text), PIECE):
            await self._tell_delta(index, text[begin : begin + PIECE])
            index += 1
        return index

    async def _begin(self) -> None:
        row, attempt = self.row, self._attempt + 1
        told = CompletionStarted(
            request_id=row.request_id,
            session_id=row.session_id,
            attempt=attempt,
            provider=row.provider,
            model=row.model,
        )

        left_s = self._left_s()

        def begin(tx: Transaction) -> Lease | LeaseHeld:
            try:
                lease = self._means.sessions.take_in(tx, row.session_id, row.request_id, work_s=left_s)
            except LeaseHeld as held:
                return held
            tx.execute(_BEGIN, (attempt, self._means.clock.time_us(), row.request_id))
            tx.tell(told, stream=f"completion/{row.request_id}")
            return lease

        lease = await self._means.storing.stored(
            lambda: self._means.database.write(begin), request_id=row.request_id, session_id=row.session_id
        )
        if isinstance(lease, LeaseHeld):
            # Whoever has it could not be ended: two at work on a session would spoil it.
            retry_after_s = min(60.0, float(lease.details["retry_after_s"]))
            raise ProviderFailure(
                lease.message, reason=SESSION_BUSY, kind="transient", retry_after_s=retry_after_s
            )
        self._attempt, self._lease = attempt, lease
        self._live.started(self._named() | {"provider": row.provider, "model": row.model})

    async def _after_failure(self, failure: ProviderFailure) -> Outcome | Again:
        """Have it tried again, here or elsewhere, if that may help."""
        was_called = failure.reason != SHUT
        row = replace(
            self.row,
            attempts=self._attempt,
            failures=self.row.failures + was_called,
            worked_ms=self.row.worked_ms + self._elapsed_ms(),
        )
        routes, delay_s = self._means.providers.routes, 0.0
        is_lost = failure.reason == SESSION_LOST and self._session.provider_session is not None
        is_unfit = failure.reason == structured.REASON and row.last_reason != structured.REASON
        instead = routes.instead(row.alias, row.candidate, failure)
        if is_lost or is_unfit:  # the provider is told the whole conversation, or what is wrong, at once
            row = replace(row, failures=self.row.failures)
        elif instead is not None:
            row = replace(row, provider=instead.provider, model=instead.model)
        else:
            retry = self._means.retries.decide(failure, failures=row.failures)
            if retry is None:
                return self._end(failure=failure_of(failure), failures=row.failures, usage=failure.usage)
            first, delay_s = routes.again(row.alias, row.candidate), retry.delay_s
            row = replace(row, provider=first.provider, model=first.model)
        setback = Setback(
            reason=failure.reason,
            message=failure.message,
            delay_s=delay_s,
            kind=failure.kind,
            usage=failure.usage,
            lease=self._lease,
            is_session_lost=is_lost,
            asked=self.row.candidate,
            is_failover=instead is not None and not (is_lost or is_unfit),
        )
        return await self._again(row, setback)

    async def _after_budget(self, over: BudgetExceeded) -> Again:
        """Let it wait until there is more of a budget; what was said until then is paid for."""
        row = replace(self.row, attempts=self._attempt, worked_ms=self.row.worked_ms + self._elapsed_ms())
        was_called = self._generation is not None
        usage = Usage(prompt_tokens=self._reservation.tokens) if was_called else None
        setback = Setback(
            reason="budget_exceeded",
            message=used_up(over.name),
            usage=usage,
            lease=self._lease,
            over=over,
        )
        return await self._again(row, setback)

    async def _again(self, row: Row, setback: Setback) -> Again:
        row = await self._means.tries.note(row, setback)
        told = self._named() | {"reason": setback.reason, "message": setback.message}
        if setback.over is not None:
            self._live.tell("paused", told)
        elif not setback.is_failover:
            self._live.tell("retrying", told | {"delay_s": setback.delay_s})
        if setback.asked not in {None, row.candidate}:
            self._live.tell("failover", told | {"provider": row.provider, "model": row.model})
        unfit = self._unfit if setback.reason == structured.REASON else None
        return Again(row=row, delay_s=setback.delay_s, unfit=unfit)

    async def _tell_delta(self, index: int, text: str) -> None:
        self._is_silent = False
        self._live.said(text)
        await self._means.bus.notify(CompletionDelta(**self._named(), index=index, text=text))

    def _named(self) -> dict[str, Any]:
        return {
            "request_id": self.row.request_id,
            "session_id": self.row.session_id,
            "attempt": self._attempt,
        }

    def _left_s(self) -> float:
        return max(0.0, self.row.timeout_s - self.row.worked_ms / 1000)

    def _elapsed_ms(self) -> int:
        return round((self._means.clock.monotonic() - self._began) * 1000)

    def _end(self, *, failures: int | None = None, **how: Any) -> Outcome:
        return Outcome(
            attempt=self._attempt,
            duration_ms=self.row.worked_ms + self._elapsed_ms(),
            failures=self.row.failures if failures is None else failures,
            lease=self._lease,
            **how,
        )


async def guarded(work: Awaitable[T]) -> T | Exception:
    """Await what may have a bug; give what it raised, which is to cost no other completion anything."""
    try:
        return await work
    except Exception as error:
        return error
