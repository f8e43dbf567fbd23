"""A subscriber in the process: events wait in a bounded queue for the coroutine that reads them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ksi_common.envelope import StoredEvent
from ksi_common.frames import MarkKind
from ksi_daemon.children import Tasks
from ksi_daemon.hub import Batch
from ksi_daemon.subscriptions import MAX_BYTES, MAX_EVENTS, Interest, Subscriptions
from ksi_daemon.supervisor import attempt_async


class QueueSink:
    """Hold events, each with its position, until they are taken."""

    def __init__(self, limit: int = MAX_EVENTS) -> None:
        self.limit = limit
        self.lagged = 0
        """How often it was full, or something could not be had any more."""
        self._events: deque[StoredEvent] = deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def full(self) -> bool:
        """Tell whether it holds as much unread as it may."""
        return len(self._events) >= self.limit or self._bytes >= MAX_BYTES

    @property
    def half_full(self) -> bool:
        """Tell whether it holds more than half of that."""
        return len(self._events) > self.limit // 2 or self._bytes > MAX_BYTES // 2

    def deliver(self, batch: Batch) -> None:
        """Take events; never waits."""
        self._events.extend(batch.events)
        self._bytes += batch.size
        self._arrived.set()

    def mark(self, kind: MarkKind, cursor: str, fields: Mapping[str, Any]) -> None:  # noqa: ARG002 -- a Sink
        """Count gaps; the other marks are of no use in process."""
        self.lagged += kind == "gap"

    async def wait_drained(self) -> None:
        """Return when half of it is read."""
        self.lagged += 1
        while self.half_full:
            self._drained.clear()
            await self._drained.wait()

    async def take(self) -> tuple[StoredEvent, int]:
        """Give the next event and its position; raise what ended the feed, once all is read."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        self._bytes -= len(event.data)
        if not self.half_full:
            self._drained.set()
        return event, event.position

    async def fill(self, subscriptions: Subscriptions, interest: Interest) -> None:
        """Follow ``interest`` until cancelled; an error is raised where the events are taken."""
        self._error = await attempt_async(lambda: subscriptions.follow(interest, self))
        self._arrived.set()


@asynccontextmanager
async def following(
    subscriptions: Subscriptions, interest: Interest, tasks: Tasks
) -> AsyncIterator[QueueSink]:
    """Fill a queue for as long as the block runs."""
    sink = QueueSink()
    task = tasks.create_task(sink.fill(subscriptions, interest))
    try:
        yield sink
    finally:
        task.cancel()
