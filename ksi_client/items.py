"""Iterate over a stream, blocking."""

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from ksi_client.blocking_link import BlockingLink
from ksi_client.exchanges import Entry, Feed
from ksi_client.timeouts import late

T = TypeVar("T")


class Items(Generic[T]):
    """What a stream gives, one by one. Leaving it, or ``close()``, stops the stream.

    ``cursor``: where to resume after the last one given; None where the stream has no cursors.
    """

    def __init__(
        self, link: BlockingLink, feed: Feed, convert: Callable[[Entry], T | None], *, deadline: float
    ) -> None:
        self._link = link
        self._feed = feed
        self._convert = convert
        self._deadline = deadline
        self.cursor: str | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while True:
            entry = self._next_entry()
            self.cursor = entry.cursor or self.cursor
            item = self._convert(entry)
            if item is not None:
                return item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop the stream; may be called twice."""
        if not self._feed.done:
            self._link.cancel(self._feed)

    def _next_entry(self) -> Entry:
        with self._link.turn():
            while (entry := self._link.pop(self._feed)) is None:
                self._wait()
        return entry

    def _wait(self) -> None:
        if self._feed.error is not None:
            raise self._feed.error
        if self._feed.done:
            raise StopIteration
        if time.monotonic() >= self._deadline:
            self.close()
            raise late(self._feed.call)
        self._link.wait(self._deadline)
