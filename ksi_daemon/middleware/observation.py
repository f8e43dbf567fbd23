"""Count and time what is handled; a line of log each only where that is asked for."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic, perf_counter

import structlog

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import Cancelled, DeadlineExceeded
from ksi_daemon.outcomes import Endpoint, Failed, Outcome, Send
from ksi_daemon.supervisor import attempt

log = structlog.get_logger()

Observer = Callable[[EventEnvelope, float, str], None]
"""Told of each event after its answer: the envelope, seconds taken, and the error code or "OK"."""


Slow = Callable[[EventEnvelope, float], None]


@dataclass(slots=True)
class EventStatistics:
    """Figures of one event name since the start."""

    handled: int = 0
    failed: int = 0
    seconds: float = 0.0


class Observation:
    """Keep figures by event name. Only declared names are kept, so they cannot grow without bound.

    ``observers`` is looked at anew for each event: those of a plugin refused late are taken out of it.
    """

    def __init__(
        self,
        *,
        log_requests: bool,
        observers: Sequence[Observer] = (),
        slow_s: float = float("inf"),
        slow: Slow = lambda _, __: None,
    ) -> None:
        """``slow``: told of requests that took longer than ``slow_s`` seconds."""
        self._plugins = observers
        self._slow_s = slow_s
        self._slow = slow
        self._by_event: dict[str, EventStatistics] = {}
        self.log_requests(log_requests)

    def log_requests(self, wanted: bool) -> None:  # noqa: FBT001  (a setting, as it is)
        """Write a line for each event from now on, or none."""
        self._own: Sequence[Observer] = (_log_line,) if wanted else ()

    @property
    def statistics(self) -> dict[str, EventStatistics]:
        """Give the figures by event name."""
        return self._by_event

    async def __call__(self, envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        """Measure the rest of the way."""
        start = perf_counter()
        if self._plugins or self._own:
            await self._observed(envelope, send, call_next, start)
            return
        failed = True
        try:
            await call_next(envelope, send)
            failed = False
        finally:
            self._count(envelope, perf_counter() - start, failed=failed)

    def ended(self, envelope: EventEnvelope, start: float, error: BaseException | None = None) -> None:
        """Take note of an event that was handled without a task; ``start``: of ``perf_counter``."""
        took = perf_counter() - start
        self._count(envelope, took, failed=error is not None)
        if self._plugins or self._own:
            self._tell_later(envelope, took, "OK" if error is None else _code(error, envelope))

    async def _observed(self, envelope: EventEnvelope, send: Send, call_next: Endpoint, start: float) -> None:
        code = "OK"

        async def watch(outcome: Outcome) -> None:
            nonlocal code
            if type(outcome) is Failed:
                code = outcome.error.code
            await send(outcome)

        try:
            await call_next(envelope, watch)
        except BaseException as error:
            code = _code(error, envelope)
            raise
        finally:
            took = perf_counter() - start
            self._count(envelope, took, failed=code != "OK")
            self._tell_later(envelope, took, code)

    def _tell_later(self, envelope: EventEnvelope, took: float, code: str) -> None:
        # After the answer, which on failure is given by a layer further out.
        asyncio.get_running_loop().call_soon(self._tell, envelope, took, code)

    def _tell(self, envelope: EventEnvelope, took: float, code: str) -> None:
        for observe in (*self._own, *self._plugins):
            error = attempt(partial(observe, envelope, took, code))
            if isinstance(error, BaseException):
                log.error("observer.failed", handled=envelope.event, error=repr(error))

    def _count(self, envelope: EventEnvelope, took: float, *, failed: bool) -> None:
        if envelope.spec is None:
            return
        figures = self._by_event.get(envelope.event)
        if figures is None:
            figures = self._by_event[envelope.event] = EventStatistics()
        figures.handled += 1
        figures.failed += failed
        figures.seconds += took
        if took > self._slow_s and envelope.spec.kind == "request":
            self._slow(envelope, took)


def _code(error: BaseException, envelope: EventEnvelope) -> str:
    if isinstance(error, asyncio.CancelledError):
        late = envelope.deadline is not None and monotonic() >= envelope.deadline
        return DeadlineExceeded.code if late else Cancelled.code
    return str(getattr(error, "code", "INTERNAL"))


def _log_line(envelope: EventEnvelope, took: float, code: str) -> None:
    log.info("event.handled", handled=envelope.event, took_ms=round(took * 1000, 3), outcome=code)
