"""The way of one completion through those that may answer it: who is asked, and who instead."""

from collections.abc import Sequence
from typing import Final, Protocol

from ksi_completion.circuit_breakers import Candidate, CircuitBreakers
from ksi_completion.providers.interface import CompletionProvider, FailureClass, ProviderFailure
from ksi_daemon.plugin import NotFound

FAILED_OVER: Final[frozenset[FailureClass]] = frozenset(
    ("transient", "rate_limited", "stalled", "auth", "not_deployed")
)
"""What another provider may do better: all but what is wrong with the request, or is not known."""


class Rooms(Protocol):
    """The providers, and what each has at work."""

    def get(self, name: str) -> CompletionProvider:
        """Give a provider by name; raise NotFound."""
        ...

    async def wait_room(self, name: str) -> None:
        """Wait until a provider can begin another answer."""
        ...

    def begin(self, name: str) -> None:
        """Count an answer that is being made."""
        ...

    def end(self, name: str) -> None:
        """Count it no more."""
        ...


class Route:
    """What one Run of a completion asks, from ``current`` on, whose room it holds.

    A round goes over the candidates in order; the next round begins with the first again.
    """

    def __init__(
        self, rooms: Rooms, breakers: CircuitBreakers, candidates: Sequence[Candidate], current: Candidate
    ) -> None:
        self.current = current
        self.reason: ProviderFailure | None = None
        """Why ``current`` is not the one before it."""
        self._rooms = rooms
        self._breakers = breakers
        self._candidates = candidates
        self._home = current.provider
        self._held: str | None = current.provider
        self._failed: set[Candidate] = set()
        self._is_inside = False

    async def enter(self) -> CompletionProvider:
        """Choose who is asked next, and wait for room there; ``succeeded`` or ``failed`` must follow.

        Raises ProviderFailure where nobody may be asked now.
        """
        chosen = self._choose()
        await self._move(chosen.provider)
        self.current = chosen
        return self._rooms.get(chosen.provider)

    async def succeeded(self) -> None:
        """Hear that there is an answer."""
        self._is_inside = False
        await self._breakers.succeeded(self.current)

    async def failed(self, failure: ProviderFailure) -> bool:
        """Hear of a failure, of ``enter`` too; tell whether another may be asked at once."""
        if self._is_inside:
            self._is_inside = False
            await self._breakers.failed(self.current, failure)
        self.reason = failure
        self._failed.add(self.current)
        if failure.kind in FAILED_OVER and not self._failed.issuperset(self._candidates):
            return True
        self._failed.clear()
        return False

    def leave(self) -> None:
        """Hold again what was held at first, and nothing else."""
        if self._is_inside:
            self._is_inside = False
            self._breakers.left(self.current)
        if self._held != self._home:
            self._give_back()
            self._rooms.begin(self._home)
            self._held = self._home

    async def _move(self, provider: str) -> None:
        if provider != self._held:
            self._give_back()
            await self._rooms.wait_room(provider)
            self._rooms.begin(provider)
            self._held = provider

    def _give_back(self) -> None:
        if self._held is not None:
            self._rooms.end(self._held)
            self._held = None

    def _choose(self) -> Candidate:
        shut: list[tuple[float, Candidate]] = []
        for candidate in self._candidates:
            if candidate in self._failed or self._is_missing(candidate):
                continue
            wait_s = self._breakers.enter(candidate)
            if not wait_s:
                self._is_inside = True
                return candidate
            self.reason = _shut(candidate, wait_s)
            shut.append((wait_s, candidate))
        if not shut:
            raise ProviderFailure(
                f"none of {', '.join(map(str, self._candidates))} can be used",
                reason="provider_missing",
                kind="not_deployed",
            )
        # The round ends: whoever is shut is asked when the first of them opens.
        self._failed.update(self._candidates)
        raise _shut(min(shut)[1], min(shut)[0])

    def _is_missing(self, candidate: Candidate) -> bool:
        if len(self._candidates) == 1:
            return False  # It says itself what is wrong with it.
        try:
            reason = self._rooms.get(candidate.provider).missing()
        except NotFound as error:
            reason = error.message
        if reason is not None:
            self.reason = ProviderFailure(reason, reason="provider_missing", kind="not_deployed")
        return reason is not None


def _shut(candidate: Candidate, wait_s: float) -> ProviderFailure:
    return ProviderFailure(
        f"{candidate} has failed too often and is left alone for {wait_s:.1f} s",
        reason="breaker_open",
        retry_after_s=wait_s,
    )
