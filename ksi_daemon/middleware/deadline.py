"""Every request ends in time: one wheel of deadlines instead of a timer each."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from ksi_common.envelope import Caller, EventEnvelope
from ksi_common.errors import DeadlineExceeded
from ksi_daemon.outcomes import Endpoint, Send
from ksi_daemon.supervisor import for_each

TICK_S: Final = 0.1
"""How late a deadline may be noticed."""


class Deadline:
    """Bound each request by what its caller gives, or by ``default_s``; streams only by the former."""

    def __init__(self, default_s: float, *, late: Callable[[Caller], None] = lambda _: None) -> None:
        """``late``: told of each caller whose time is over, before it is abandoned."""
        self._default_s = default_s
        self._wheel = DeadlineWheel(late)

    async def __call__(self, envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        """Register the caller for as long as the rest of the way takes."""
        timeout_s = envelope.timeout_s
        if timeout_s is None:
            if envelope.spec is not None and envelope.spec.kind == "stream":
                await call_next(envelope, send)
                return
            timeout_s = self._default_s
        inherited = envelope.deadline is not None
        deadline = _shorten(envelope, timeout_s)
        caller = envelope.caller
        if caller is None:
            if inherited and envelope.timeout_s is None:  # the caller's own deadline holds
                await call_next(envelope, send)
            else:
                await _within(envelope, send, call_next)
            return
        slot = self._wheel.add(deadline, caller)
        try:
            await call_next(envelope, send)
        finally:
            slot.pop(caller, None)

    def watch(self, envelope: EventEnvelope, caller: Caller) -> dict[Caller, None]:
        """Abandon ``caller`` when the time of a request is over, unless it is taken out of the slot given."""
        timeout_s = self._default_s if envelope.timeout_s is None else envelope.timeout_s
        return self._wheel.add(_shorten(envelope, timeout_s), caller)


def _shorten(envelope: EventEnvelope, timeout_s: float) -> float:
    deadline = monotonic() + timeout_s  # the loop's clock; asking for the loop would cost a getpid
    if envelope.deadline is None or deadline < envelope.deadline:
        envelope.deadline = deadline
    return envelope.deadline


async def _within(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
    limit = asyncio.timeout_at(envelope.deadline)
    try:
        async with limit:
            await call_next(envelope, send)
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(f"{envelope.event} took too long", reason="deadline") from None


class DeadlineWheel:
    """Callers by the tick in which their time ends. Costs two dict operations each, and no timer."""

    def __init__(self, late: Callable[[Caller], None] = lambda _: None) -> None:
        self._late = late
        self._slots: dict[int, dict[Caller, None]] = {}
        self._ticking = False

    def add(self, deadline: float, caller: Caller) -> dict[Caller, None]:
        """Abandon ``caller`` at ``deadline`` unless it is taken out of the slot given."""
        tick = int(deadline / TICK_S) + 1
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = {}
            if not self._ticking:
                self._wait()
        slot[caller] = None
        return slot

    def _wait(self) -> None:
        self._ticking = True
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now = monotonic()
        over = [tick for tick in self._slots if tick * TICK_S <= now]
        # Copied, because who is abandoned may take itself out of its slot.
        late = [caller for tick in over for caller in self._slots.pop(tick)]
        self._ticking = False
        if self._slots:
            self._wait()  # first, so that whatever one of them raises the wheel turns on
        for_each(late, self._abandon)

    def _abandon(self, caller: Caller) -> None:
        self._late(caller)
        caller.abandon()
