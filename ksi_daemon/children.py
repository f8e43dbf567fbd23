"""The outer TaskGroup: what runs as long as the daemon, and ends with it."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self


class Children:
    """A TaskGroup whose long-running members are cancelled at the end, and awaited."""

    def __init__(self) -> None:
        self.group = asyncio.TaskGroup()
        self._running: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        await self.group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
        await self.group.__aexit__(kind, error, traceback)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run ``coroutine`` until it ends or the daemon does; where it raises, the daemon ends."""
        self._running.append(self.group.create_task(coroutine))

    def cancel(self) -> None:
        """Stop what was started."""
        for task in self._running:
            task.cancel()
