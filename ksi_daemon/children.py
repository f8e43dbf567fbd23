"""The outer TaskGroup: what runs as long as the daemon, and ends with it."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

T = TypeVar("T")


class Tasks(Protocol):
    """Where a task is born, and awaited: a TaskGroup, or the daemon's Children."""

    def create_task(self, coroutine: Coroutine[Any, Any, T], /) -> asyncio.Task[T]:
        """Run ``coroutine`` until it ends."""
        ...


class Children:
    """A TaskGroup whose members are cancelled at the end, and awaited."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
        await self._group.__aexit__(kind, error, traceback)

    def create_task(self, coroutine: Coroutine[Any, Any, T], /) -> asyncio.Task[T]:
        """Run ``coroutine`` until it ends or the daemon does; where it raises, the daemon ends."""
        task = self._group.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def cancel(self) -> None:
        """Stop what was started."""
        for task in tuple(self._running):
            task.cancel()
