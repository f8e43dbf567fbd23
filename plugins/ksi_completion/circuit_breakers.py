"""Providers and models that fail one call after another are left alone for a while.

Closed: calls pass. Open, after so many failures in a row: none passes until a time. Half open, from then on:
one call is let through, and its end decides. What is known is on disk, and a restart does not forget it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import structlog

from ksi_common.clock import Clock
from ksi_common.events.completion_providers import BreakerState, CompletionBreakerChanged
from ksi_common.records import record
from ksi_completion.providers.interface import FailureClass, ProviderFailure
from ksi_daemon.plugin import Database, OperationalError, Transaction

log = structlog.get_logger()

SECOND_US: Final = 1_000_000
MAX_OPEN_S: Final = 300.0
"""A breaker that opens again stays open twice as long as before, up to this."""
PROBE_S: Final = 1.0
"""When to come back while somebody else's call decides."""
COUNTED: Final[frozenset[FailureClass]] = frozenset(("transient", "rate_limited", "stalled", "auth"))
"""Failures of the provider. The others are of the request, and show that the provider answers."""

_LOAD: Final = "SELECT * FROM completion_breakers"
_SAVE: Final = (
    "INSERT INTO completion_breakers (provider, model, failures, opened_us, open_s, reason, message) "
    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (provider, model) DO UPDATE SET failures = excluded.failures, "
    "opened_us = excluded.opened_us, open_s = excluded.open_s, reason = excluded.reason, "
    "message = excluded.message"
)
_FORGET: Final = "DELETE FROM completion_breakers WHERE provider = ? AND model = ?"


class Candidate(NamedTuple):
    """A model of a provider."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@record
class Breaker:
    """What is known of a candidate. ``opened_us``: 0 where it is closed; ``reason``: of the last failure."""

    failures: int = 0
    """In a row."""
    opened_us: int = 0
    open_s: float = 0.0
    reason: str = ""
    message: str = ""

    def wait_s(self, now_us: int) -> float:
        """Tell for how long no call may pass, in seconds; a clock that was set back adds nothing."""
        if not self.opened_us:
            return 0.0
        left_s = self.open_s - (now_us - self.opened_us) / SECOND_US
        return min(max(left_s, 0.0), self.open_s)

    def state(self, now_us: int) -> BreakerState:
        """Name its state."""
        if not self.opened_us:
            return "closed"
        return "open" if self.wait_s(now_us) > 0 else "half_open"


class CircuitBreakers:
    """The breakers of all. ``failures``: how many in a row open one; ``open_s``: for how long at first."""

    def __init__(self, database: Database, clock: Clock, *, failures: int, open_s: float) -> None:
        self._database = database
        self._clock = clock
        self._failures = failures
        self._open_s = open_s
        self._breakers: dict[Candidate, Breaker] = {}
        self._probing: dict[Candidate, object] = {}
        """The calls that decide."""

    async def load(self) -> None:
        """Read what an earlier daemon knew."""
        for provider, model, *known in await self._database.read(_LOAD):
            self._breakers[Candidate(provider, model)] = Breaker(*known)

    def enter(self, candidate: Candidate, call: object) -> float:
        """Ask for a call: 0 lets it pass, and ``succeeded``, ``failed`` or ``left`` must follow.

        Otherwise gives the seconds after which to ask again. ``call``: what it is known by, by identity.
        """
        breaker = self._breaker(candidate)
        if not breaker.opened_us:
            return 0.0
        if wait_s := breaker.wait_s(self._clock.time_us()):
            return wait_s
        if candidate in self._probing:
            return PROBE_S
        self._probing[candidate] = call
        return 0.0

    async def succeeded(self, candidate: Candidate) -> None:
        """Hear that a call was answered: the breaker closes, and is forgotten."""
        self._probing.pop(candidate, None)
        before = self._breakers.pop(candidate, None)
        if before is None:
            return

        def forget(tx: Transaction) -> None:
            tx.execute(_FORGET, candidate)
            if before.opened_us:
                tx.tell(self._told(candidate, "closed", Breaker()), stream=f"provider/{candidate.provider}")

        await self._keep(candidate, forget)

    async def failed(self, candidate: Candidate, call: object, failure: ProviderFailure) -> None:
        """Hear that a call failed: the breaker opens with the last of so many, or with a failed probe."""
        if failure.kind not in COUNTED:
            await self.succeeded(candidate)
            return
        was_probe = self._probing.get(candidate) is call
        self.left(candidate, call)
        before = self._breakers.get(candidate, Breaker())
        breaker = self._after(before, failure, was_probe=was_probe)
        self._breakers[candidate] = breaker

        def save(tx: Transaction) -> None:
            known = (breaker.failures, breaker.opened_us, breaker.open_s, breaker.reason, breaker.message)
            tx.execute(_SAVE, (*candidate, *known))
            if breaker.opened_us != before.opened_us:
                tx.tell(self._told(candidate, "open", breaker), stream=f"provider/{candidate.provider}")

        await self._keep(candidate, save)

    def left(self, candidate: Candidate, call: object) -> None:
        """Hear that a call ended without saying anything of its provider: where it was to, another may."""
        if self._probing.get(candidate) is call:
            del self._probing[candidate]

    def wait_s(self, candidate: Candidate) -> float:
        """Tell for how long no call of it may pass, in seconds."""
        return self._breaker(candidate).wait_s(self._clock.time_us())

    def known(self) -> Sequence[tuple[Candidate, Breaker, BreakerState]]:
        """Describe every candidate that has failed since it last answered."""
        now = self._clock.time_us()
        return [(candidate, breaker, breaker.state(now)) for candidate, breaker in self._breakers.items()]

    def _breaker(self, candidate: Candidate) -> Breaker:
        """Give what is known. One that opened in the future did so now: the clock was set back since."""
        breaker, now = self._breakers.get(candidate, Breaker()), self._clock.time_us()
        if breaker.opened_us > now:
            breaker = self._breakers[candidate] = replace(breaker, opened_us=now)
        return breaker

    async def _keep(self, candidate: Candidate, unit: Callable[[Transaction], None]) -> None:
        """Write; where the disk takes nothing, what is known here is enough until the next start."""
        try:
            await self._database.write(unit)
        except OperationalError as error:
            log.warning("breaker.not_stored", candidate=str(candidate), error=error.message)

    def _after(self, before: Breaker, failure: ProviderFailure, *, was_probe: bool) -> Breaker:
        breaker = replace(
            before, failures=before.failures + 1, reason=failure.reason, message=failure.message[:500]
        )
        if not was_probe and (before.opened_us or breaker.failures < self._failures):
            # One that had begun before it opened says nothing new.
            return breaker
        open_s = min(before.open_s * 2 or self._open_s, MAX_OPEN_S)
        return replace(
            breaker, opened_us=self._clock.time_us(), open_s=max(open_s, failure.retry_after_s or 0.0)
        )

    def _told(self, candidate: Candidate, state: BreakerState, breaker: Breaker) -> CompletionBreakerChanged:
        fields: dict[str, Any] = (
            {"reason": breaker.reason, "message": breaker.message} if breaker.reason else {}
        )
        return CompletionBreakerChanged(
            provider=candidate.provider,
            model=candidate.model,
            state=state,
            failures=breaker.failures,
            open_s=breaker.open_s if breaker.opened_us else None,
            **fields,
        )
