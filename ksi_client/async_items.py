"""Iterate over a stream, with asyncio."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from ksi_client.async_link import AsyncLink
from ksi_client.exchanges import Entry, Feed
from ksi_client.timeouts import late

T = TypeVar("T")


class AsyncItems(AsyncIterator[T], Generic[T]):
    """What a stream gives, one by one. Letting go of it, or ``aclose()``, stops the stream.

    Cancelling a wait loses nothing: the next one goes on. ``cursor``: where to resume after the last item
    given; None where the stream has no cursors.
    """

    def __init__(
        self, link: AsyncLink, feed: Feed, convert: Callable[[Entry], T | None], *, deadline: float | None
    ) -> None:
        self._link = link
        self._feed = feed
        self._convert = convert
        self._deadline = deadline
        self._arrived = asyncio.Event()
        feed.wake = self._arrived.set
        self.cursor: str | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            entry = self._link.pop(self._feed)
            if entry is None:
                await self._wait()
                continue
            self.cursor = entry.cursor or self.cursor
            item = self._convert(entry)
            if item is not None:
                return item

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._feed.done:
            self._link.cancel_soon(self._feed)

    async def aclose(self) -> None:
        """Stop the stream; may be called twice."""
        if not self._feed.done:
            self._link.cancel(self._feed)

    async def _wait(self) -> None:
        if self._feed.error is not None:
            raise self._feed.error
        if self._feed.done:
            raise StopAsyncIteration
        self._arrived.clear()
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._arrived.wait()
        except TimeoutError:
            await self.aclose()
            raise late(self._feed.call) from None
