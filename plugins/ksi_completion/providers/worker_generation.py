"""One answer that a worker makes: fed with its reports, read by who asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from ksi_common.events.completion import Proof
from ksi_completion.providers.interface import Answer, ProviderFailure
from ksi_completion.providers.worker_reports import Delta, Done, Failed, Stopped

MAX_ANSWER_CHARACTERS: Final = 8 * 1024 * 1024
"""Of one answer; a worker that says more is at fault."""


class WorkerGeneration:
    """A Generation. Pieces that nobody has taken yet are joined: a slow reader gets fewer, longer ones."""

    def __init__(self, stop: Callable[["WorkerGeneration"], Awaitable[None]]) -> None:
        self.ended = asyncio.Event()
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

        A worker that does not confirm it in time is killed: then its other answers fail, too. Raises
        ProviderFailure where a process cannot be killed. Cancelling this undoes nothing.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._stop(self)
        elapsed_s = round(loop.time() - began, 3)
        if self._pids_gone is None:
            return Proof(how="confirmed", elapsed_s=elapsed_s)
        return Proof(how="killed", elapsed_s=elapsed_s, pids_gone=list(self._pids_gone))

    def take(self, report: Delta | Done | Failed | Stopped) -> None:
        """Hear of the answer. Raises ProviderFailure, against its worker, where it becomes too long."""
        match report:
            case Delta():
                self._pieces.append(report.text)
                self._size += len(report.text)
                self._news.set()
            case Done():
                self._end(_answer(report))
            case Failed():
                self._end(report.failure())
            case Stopped():
                self._end(ProviderFailure("it was cancelled", reason="cancelled", kind="invalid"))
        if self._size > MAX_ANSWER_CHARACTERS:
            message = f"the answer has more than {MAX_ANSWER_CHARACTERS} characters"
            self._end(ProviderFailure(message, reason="too_large", kind="invalid"))
            raise ProviderFailure("an answer without bounds was made beside it", reason="worker_garbled")

    def fail(self, failure: ProviderFailure, pids_gone: Sequence[int]) -> None:
        """End it with its worker, unless it has its end."""
        self._pids_gone = pids_gone
        if self._outcome is None:
            self._end(failure)

    def _end(self, outcome: Answer | ProviderFailure) -> None:
        self._outcome = outcome
        self._news.set()
        self.ended.set()


def _answer(report: Done) -> Answer:
    response = report.model_dump(include={"model", "finish_reason"}) | {
        "result": report.text,
        "usage": report.usage.model_dump(exclude_none=True),
    }
    if report.dropped_messages:
        response["dropped_messages"] = report.dropped_messages
    return Answer(
        text=report.text,
        model=report.model,
        finish_reason=report.finish_reason,
        usage=report.usage,
        response=response,
    )
