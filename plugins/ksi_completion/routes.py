"""The way of a completion through the models that its alias stands for: who is asked instead of who failed.

A round goes over them in their order, the next one begins with the first again. Where a completion is in its
round is said by whom it asks now, so that a restart does not forget it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from ksi_completion.circuit_breakers import Candidate, CircuitBreakers
from ksi_completion.providers.interface import Answer, FailureClass, ProviderFailure
from ksi_completion.response_cache import is_cached
from ksi_completion.retry_manager import SESSION_BUSY

FAILED_OVER: Final[frozenset[FailureClass]] = frozenset(
    ("transient", "rate_limited", "stalled", "auth", "not_deployed")
)
"""What another provider may do better: all but what is wrong with the request, or is not known."""
NO_FAULT: Final[frozenset[FailureClass]] = frozenset(("not_deployed", "unknown_outcome"))
"""What says nothing of the health of a model."""
SHUT: Final = "breaker_open"

Came = TypeVar("Came")


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

    async def call(self, current: Candidate, work: Callable[[], Awaitable[Came]]) -> Came | ProviderFailure:
        """Have a provider called, unless it is left alone: then give why not (``SHUT``).

        What came of it is heard here, where it says something of the provider.
        """
        call = object()
        wait_s = self._breakers.enter(current, call)
        if wait_s:
            return ProviderFailure(
                f"{current} has failed too often and is left alone for {wait_s:.1f} s",
                reason=SHUT,
                retry_after_s=wait_s,
            )
        said_something = False
        try:
            came = await work()
            if isinstance(came, Answer):
                said_something = not is_cached(came.response)
            elif isinstance(came, ProviderFailure):
                said_something = came.kind not in NO_FAULT and came.reason != SESSION_BUSY
        finally:
            if not said_something:
                self._breakers.left(current, call)
        if said_something and isinstance(came, ProviderFailure):
            await self._breakers.failed(current, call, came)
        elif said_something:
            await self._breakers.succeeded(current)
        return came

    def instead(self, alias: str | None, current: Candidate, failure: ProviderFailure) -> Candidate | None:
        """Give who may be asked at once instead of who failed; None where the round is over."""
        candidates = self._aliases.get(alias or "", ())
        if failure.kind not in FAILED_OVER or failure.reason == SESSION_BUSY or current not in candidates:
            return None
        for candidate in candidates[candidates.index(current) + 1 :]:
            if self._is_usable(candidate.provider) and not self._breakers.wait_s(candidate):
                return candidate
        return None

    def again(self, alias: str | None, current: Candidate) -> Candidate:
        """Give who is asked first in the next round: the first that may be asked, or may be soonest."""
        candidates = [one for one in self._aliases.get(alias or "", ()) if self._is_usable(one.provider)]
        return min(candidates, key=self._breakers.wait_s, default=current)
