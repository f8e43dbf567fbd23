"""One completion at work: from its turn, over its attempts, to its outcome."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog

from ksi_common.clock import Clock
from ksi_common.events.completion import (
    ChatMessage,
    CompletionDelta,
    CompletionProgress,
    CompletionRetrying,
    CompletionStarted,
    Failure,
    Proof,
    Step,
)
from ksi_completion.live import Live
from ksi_completion.outcomes import Outcome
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.providers.interface import Answer, Generation, Job, ProviderFailure
from ksi_completion.retry_manager import RETRIED, RetryManager
from ksi_completion.rows import Row
from ksi_completion.storing import stored
from ksi_daemon.plugin import Bus, Database, KSIError, Transaction

log = structlog.get_logger()

PROGRESS_S: Final = 5.0
"""Between words of an attempt that is at work and says nothing."""

_BEGIN: Final = (
    "UPDATE completions SET state = 'running', attempts = ?, started_us = coalesce(started_us, ?) "
    "WHERE request_id = ?"
)
_FAIL: Final = "UPDATE completions SET failures = ? WHERE request_id = ?"

Conversation = Callable[[Row], Awaitable[Sequence[ChatMessage]]]
"""Give what a completion's provider is to be told: the session's turns, then the prompt."""


class Run:
    """Work on one completion. ``outcome`` is awaited once; ``cancel`` may be called at any time."""

    def __init__(
        self,
        row: Row,
        live: Live,
        *,
        database: Database,
        bus: Bus,
        clock: Clock,
        providers: ProviderManager,
        retries: RetryManager,
        conversation: Conversation,
        stall_s: float,
    ) -> None:
        self.row = row
        self._live = live
        self._database = database
        self._bus = bus
        self._clock = clock
        self._providers = providers
        self._retries = retries
        self._conversation = conversation
        self._stall_s = stall_s
        self._attempt = row.attempts
        self._began = self._wished = clock.monotonic()
        self._generation: Generation | None = None
        """At work, or the last one that was."""
        self._work: asyncio.Task[Outcome] | None = None
        self._is_unwanted = False
        self._is_silent = True

    def cancel(self) -> None:
        """Stop the work, if there is any left."""
        if not self._is_unwanted:
            self._is_unwanted = True
            self._wished = self._clock.monotonic()
            if self._work is not None:
                self._work.cancel()

    async def outcome(self) -> Outcome:
        """Work until there is an answer, a failure that is final, or the proof that it was stopped."""
        stopped: Proof | Failure = Proof(how="not_started", elapsed_s=0.0)
        if not self._is_unwanted:
            try:
                async with asyncio.TaskGroup() as group:
                    progress = group.create_task(self._tell_progress())
                    self._work = group.create_task(self._attempts())
                    self._work.add_done_callback(lambda _: progress.cancel())
            finally:
                # Not in the task of the work: there the time limit, or a wish, would break it off.
                stopped = await self._stop()
            if isinstance(stopped, Proof) and not self._work.cancelled():
                return self._work.result()
        if isinstance(stopped, Failure):
            return self._end(failure=stopped)
        elapsed_s = round(self._clock.monotonic() - self._wished, 3)
        return self._end(proof=stopped.model_copy(update={"elapsed_s": elapsed_s}))

    async def _stop(self) -> Proof | Failure:
        """Return when nothing works on it any more, or where that cannot be had."""
        if self._generation is None:
            return Proof(how="not_started", elapsed_s=0.0)
        try:
            return await self._generation.cancel()
        except ProviderFailure as error:
            return _failure(error)

    async def _attempts(self) -> Outcome:
        try:
            async with asyncio.timeout(self.row.timeout_s):
                return self._end(answer=await self._answer())
        except TimeoutError:
            message = f"no answer within {self.row.timeout_s:g} s"
            return self._end(failure=Failure(reason="timed_out", message=message, retryable=True))
        except ProviderFailure as error:
            return self._end(failure=_failure(error))
        except KSIError as error:
            reason = str(error.details.get("reason", error.code.lower()))
            return self._end(failure=Failure(reason=reason, message=error.message, retryable=error.retryable))
        except Exception as error:
            # A bug of a provider ends the completion that met it, and no other.
            log.exception("completion.bug", request_id=self.row.request_id, provider=self.row.provider)
            return self._end(failure=Failure(reason="bug", message=f"{type(error).__name__}: see the log"))

    async def _answer(self) -> Answer:
        provider = self._providers.get(self.row.provider)
        messages = await self._conversation(self.row)
        failures = self.row.failures
        while True:
            await self._begin()
            job = Job(
                self.row.request_id,
                self.row.session_id,
                self.row.model,
                messages,
                attempt=self._attempt,
                max_tokens=self.row.max_tokens,
            )
            try:
                return await self._generate(await provider.start(job))
            except ProviderFailure as failure:
                self._generation = None
                failures += 1
                retry = self._retries.decide(failure, failures=failures)
                if retry is None:
                    raise
                await self._tell_retry(failure, failures, retry.delay_s)
            await asyncio.sleep(retry.delay_s)

    async def _generate(self, generation: Generation) -> Answer:
        loop = asyncio.get_running_loop()
        index = 0
        self._generation = generation
        try:
            async with asyncio.timeout(self._stall_s) as stall:
                async for text in generation.deltas():
                    stall.reschedule(loop.time() + self._stall_s)
                    await self._tell_delta(index, text)
                    index += 1
        except TimeoutError:
            await generation.cancel()
            message = f"{self.row.provider} gave no output for {self._stall_s:g} s and was ended"
            raise ProviderFailure(message, reason="stalled", kind="stalled") from None
        return generation.answer

    async def _begin(self) -> None:
        self._attempt += 1

        def begin(tx: Transaction) -> None:
            tx.execute(_BEGIN, (self._attempt, self._clock.time_us(), self.row.request_id))
            tx.tell(CompletionStarted(**self._named()), stream=f"completion/{self.row.request_id}")

        await self._write(begin)
        self._show("started")

    async def _tell_retry(self, failure: ProviderFailure, failures: int, delay_s: float) -> None:
        told = CompletionRetrying(
            **self._named(with_provider=False),
            delay_s=delay_s,
            reason=failure.reason,
            message=failure.message,
        )

        def note(tx: Transaction) -> None:
            tx.execute(_FAIL, (failures, self.row.request_id))
            tx.tell(told, stream=f"completion/{self.row.request_id}")

        await self._write(note)
        self._show("retrying", delay_s=delay_s, reason=failure.reason)

    async def _write(self, unit: Callable[[Transaction], None]) -> None:
        """Write, as soon as the disk takes it: a full one is no fault of the completion."""
        await stored(lambda: self._database.write(unit), request_id=self.row.request_id)

    async def _tell_delta(self, index: int, text: str) -> None:
        self._is_silent = False
        self._show("delta", text=text)
        await self._bus.notify(CompletionDelta(**self._named(with_provider=False), index=index, text=text))

    async def _tell_progress(self) -> None:
        while True:
            self._is_silent = True
            await asyncio.sleep(PROGRESS_S)
            if not self._is_silent:
                continue
            elapsed_s = self._clock.monotonic() - self._began
            self._show("progress", elapsed_s=elapsed_s)
            await self._bus.notify(
                CompletionProgress(**self._named(with_provider=False), elapsed_s=elapsed_s)
            )

    def _show(self, kind: Any, **fields: Any) -> None:
        self._live.step(Step(type=kind, **self._named(with_provider=kind == "started"), **fields))

    def _named(self, *, with_provider: bool = True) -> dict[str, Any]:
        row = self.row
        names = {"request_id": row.request_id, "session_id": row.session_id, "attempt": self._attempt}
        return names | {"provider": row.provider, "model": row.model} if with_provider else names

    def _end(self, **how: Any) -> Outcome:
        duration_ms = round((self._clock.monotonic() - self._began) * 1000)
        return Outcome(attempt=self._attempt, duration_ms=duration_ms, **how)


def _failure(error: ProviderFailure) -> Failure:
    return Failure(reason=error.reason, message=error.message, retryable=error.kind in RETRIED)
