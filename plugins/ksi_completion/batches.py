"""Work for a thread that comes item by item: what comes while it is busy is its next piece, all of it."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_Waiting = tuple[T, asyncio.Future[R]]


class Batches(Generic[T, R]):
    """Gather items and have them done together. ``work`` gives an outcome for each, in order, or raises."""

    def __init__(self, thread: Executor, work: Callable[[Sequence[T]], Sequence[R | Exception]]) -> None:
        self._thread = thread
        self._work = work
        self._waiting: list[_Waiting[T, R]] = []
        self._is_busy = False

    def put(self, item: T) -> "asyncio.Future[R]":
        """Have an item done; the future gives its outcome. Cancelled, it is done all the same."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        if not self._waiting and not self._is_busy:
            loop.call_soon(self._begin)  # with what this turn of the loop still brings
        self._waiting.append((item, future))
        return future

    def _begin(self) -> None:
        if not self._waiting:  # another batch ended meanwhile, and took them along
            return
        batch, self._waiting = self._waiting, []
        self._is_busy = True
        self._do(batch)

    def _do(self, batch: Sequence[_Waiting[T, R]]) -> None:
        items = [item for item, _ in batch]
        done = asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
        done.add_done_callback(partial(self._end, batch))

    def _end(self, batch: Sequence[_Waiting[T, R]], done: "asyncio.Future[Sequence[R | Exception]]") -> None:
        self._is_busy = False
        if self._waiting:
            self._begin()
        if done.cancelled():
            return
        bug = done.exception()
        if isinstance(bug, Exception) and len(batch) > 1:
            for waiting in batch:  # one of them has it; the others are not to suffer for that
                self._do([waiting])
            return
        outcomes = [bug] if isinstance(bug, Exception) else done.result()
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
