"""One answer on its way: fed by whatever hears its process, read by who asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from ksi_common.events.completion import Proof
from ksi_completion.providers.interface import Answer, ProviderFailure

MAX_ANSWER_CHARACTERS: Final = 8 * 1024 * 1024
"""Of one answer; what says more is at fault."""


class FedGeneration:
    """A Generation. Pieces that nobody has taken yet are joined: a slow reader gets fewer, longer ones.

    ``stop``: return when nothing works on it any more, within 3 s.
    """

    def __init__(self, stop: Callable[[], Awaitable[None]]) -> None:
        self.ended = asyncio.Event()
        self.is_unwanted = False
        """A cancel was asked before its end."""
        self._stop = stop
        self._pieces: list[str] = []
        self._size = 0
        self._news = asyncio.Event()
        self._outcome: Answer | ProviderFailure | None = None
        self._pids_gone: Sequence[int] | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer, once the deltas have ended. Raises ProviderFailure where there is none."""
        assert self._outcome is not None, "the answer is not made yet"
        if isinstance(self._outcome, ProviderFailure):
            raise self._outcome
        return self._outcome

    async def deltas(self) -> AsyncIterator[str]:
        """Give the pieces of text as they come. Raises ProviderFailure, also after a cancel."""
        while True:
            self._news.clear()
            if self._pieces:
                text = "".join(self._pieces)
                self._pieces.clear()
                yield text
            elif self._outcome is None:
                await self._news.wait()
            else:
                # For what it raises.
                _ = self.answer
                return

    async def cancel(self) -> Proof:
        """Stop the work, and say how it is known to have stopped.

        Raises ProviderFailure where a process cannot be killed. Cancelling this undoes nothing.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.is_unwanted = self.is_unwanted or not self.ended.is_set()
        await self._stop()
        elapsed_s = round(loop.time() - began, 3)
        if self._pids_gone is None:
            return Proof(how="confirmed", elapsed_s=elapsed_s)
        return Proof(how="killed", elapsed_s=elapsed_s, pids_gone=list(self._pids_gone))

    def feed(self, text: str) -> None:
        """Add a piece. Raises ProviderFailure, and ends, where the answer becomes too long."""
        self._pieces.append(text)
        self._size += len(text)
        self._news.set()
        if self._size > MAX_ANSWER_CHARACTERS:
            message = f"the answer has more than {MAX_ANSWER_CHARACTERS} characters"
            self.end(ProviderFailure(message, reason="too_large", kind="invalid"))
            raise ProviderFailure("an answer without bounds was made beside it", reason="worker_garbled")

    def end(self, outcome: Answer | ProviderFailure, pids_gone: Sequence[int] | None = None) -> None:
        """End it, unless it has its end. ``pids_gone``: processes that ended with it."""
        if pids_gone is not None:
            self._pids_gone = pids_gone
        if self._outcome is None:
            self._outcome = outcome
        self._news.set()
        self.ended.set()
