"""Threads for handlers that are not async: a few, our own, and never waited for at exit."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

from ksi_common.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

THREADS: Final = 8

_Work = tuple["asyncio.Future[Any]", asyncio.AbstractEventLoop, Callable[[], Any]]


class Threads:
    """Run plain functions beside the loop, with the context of who asked. Started when first needed."""

    def __init__(
        self,
        size: int = THREADS,
        *,
        around: Callable[[Callable[[], Any]], Callable[[], Any]] = lambda work: work,
    ) -> None:
        """``around``: put around whatever is run in a thread."""
        self._size = size
        self._around = around
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self._started = 0
        self._busy = 0

    @property
    def statistics(self) -> dict[str, int]:
        """Give how many threads there are and how much work is begun or waits."""
        return {"threads": self._started, "work": self._busy}

    def wrap(self, function: Callable[P, T]) -> Callable[P, Awaitable[T]]:
        """Make an async function that runs ``function`` in a thread."""

        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.run(functools.partial(function, *args, **kwargs))

        return run

    async def run(self, function: Callable[[], T]) -> T:
        """Run ``function`` in a thread. Cancelling the await leaves the function running to its end.

        Raises Unavailable where the system has no thread to give, and none was started before.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()
        if self._busy >= self._started < self._size:
            self._add_thread()
        self._busy += 1
        self._queue.put((future, loop, functools.partial(context.run, self._around(function))))
        return await future

    def _add_thread(self) -> None:
        """Start one more; where there is none to be had the others do the work, if there are others."""
        name = f"ksi-handler-{self._started + 1}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError as error:
            if not self._started:
                raise Unavailable(f"no thread can be started: {error}", reason="no_thread") from error
        else:
            self._started += 1

    def _work(self) -> None:
        while True:
            future, loop, function = self._queue.get()
            value, error = None, None
            try:
                value = function()
            except BaseException as raised:  # noqa: BLE001 -- raised again where it is awaited
                error = raised
            try:
                loop.call_soon_threadsafe(self._finish, future, value, error)
            except RuntimeError:  # the loop is closed: nobody awaits this any more
                return

    def _finish(self, future: "asyncio.Future[Any]", value: object, error: BaseException | None) -> None:
        self._busy -= 1
        if future.done():
            return
        if error is None:
            future.set_result(value)
        elif isinstance(error, StopIteration | GeneratorExit | asyncio.CancelledError):
            # These mean something else to whoever awaits a future.
            wrapped = RuntimeError(f"a handler raised {type(error).__name__}")
            wrapped.__cause__ = error
            future.set_exception(wrapped)
        else:
            future.set_exception(error)
