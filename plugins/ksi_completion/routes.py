"""The way of a completion through the models that its alias stands for: who is asked instead of who failed.

A round goes over them in their order, the next one begins with the first again. Where a completion is in its
round is said by whom it asks now, so that a restart does not forget it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ksi_completion.circuit_breakers import Candidate, CircuitBreakers
from ksi_completion.providers.interface import FailureClass, ProviderFailure

FAILED_OVER: Final[frozenset[FailureClass]] = frozenset(
    ("transient", "rate_limited", "stalled", "auth", "not_deployed")
)
"""What another provider may do better: all but what is wrong with the request, or is not known."""
SHUT: Final = "breaker_open"


class Routes:
    """Where completions may go. ``is_usable``: a provider of that name is there, and misses nothing."""

    def __init__(
        self,
        aliases: Mapping[str, Sequence[Candidate]],
        breakers: CircuitBreakers,
        is_usable: Callable[[str], bool],
    ) -> None:
        self._aliases = aliases
        self._breakers = breakers
        self._is_usable = is_usable

    def enter(self, current: Candidate) -> None:
        """Begin a call, whose end ``report`` or ``left`` must be told; raise ProviderFailure (``SHUT``)."""
        wait_s = self._breakers.enter(current)
        if wait_s:
            raise ProviderFailure(
                f"{current} has failed too often and is left alone for {wait_s:.1f} s",
                reason=SHUT,
                retry_after_s=wait_s,
            )

    async def report(self, current: Candidate, failure: ProviderFailure | None) -> None:
        """Hear how a call has ended: with an answer, or with a failure."""
        if failure is None:
            await self._breakers.succeeded(current)
        elif failure.reason != SHUT:
            await self._breakers.failed(current, failure)

    def left(self, current: Candidate) -> None:
        """Hear that a call ended without saying anything of its provider."""
        self._breakers.left(current)

    def instead(self, alias: str | None, current: Candidate, failure: ProviderFailure) -> Candidate | None:
        """Give who may be asked at once instead of who failed; None where the round is over."""
        candidates = self._aliases.get(alias or "", ())
        if failure.kind not in FAILED_OVER or current not in candidates:
            return None
        for candidate in candidates[candidates.index(current) + 1 :]:
            if self._is_usable(candidate.provider) and not self._breakers.wait_s(candidate):
                return candidate
        return None

    def again(self, alias: str | None, current: Candidate) -> Candidate:
        """Give who is asked first in the next round: the first that may be asked, or may be soonest."""
        candidates = [one for one in self._aliases.get(alias or "", ()) if self._is_usable(one.provider)]
        return min(candidates, key=self._breakers.wait_s, default=current)
