"""A subscriber that keeps its cursor, and resumes from it over any number of connections.

``python follower.py SOCKET PATTERN LAST`` follows events whose data counts ``n`` upwards, in a process
that a test can stop; it writes a line when it has caught up, and one when it has seen ``LAST``.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from tests.support.pipeline import call_line, connected


class Follower:
    """Give ``heard`` the data of each item: what was told, with its ids."""

    def __init__(
        self,
        path: Path,
        patterns: Sequence[str],
        heard: Callable[[dict[str, Any]], object],
        *,
        start: str | dict[str, str] = "now",
    ) -> None:
        self.start = start
        self.connections = 0
        self.gaps = 0
        self.caught_up = asyncio.Event()
        self._path = path
        self._patterns = patterns
        self._heard = heard

    async def follow(self, again: Callable[[], Awaitable[object]]) -> None:
        """Follow until cancelled; await ``again`` before each further connection."""
        while True:
            try:
                await self._follow_once()
            except ConnectionError:
                await again()

    async def _follow_once(self) -> None:
        async with connected(self._path) as (reader, writer):
            self.connections += 1
            wish = {"patterns": self._patterns, "start": self.start}
            writer.write(call_line("event:subscribe", wish))
            async for line in reader:
                if line.endswith(b"\n"):
                    self._take(orjson.loads(line))
        raise ConnectionResetError("the daemon hung up")

    def _take(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "item":
                self._heard(frame["data"])
            case "caught_up":
                self.caught_up.set()
            case "gap":
                self.gaps += 1
            case "error":
                raise ConnectionResetError(frame["error"]["message"])
        if "cursor" in frame:
            self.start = {"cursor": frame["cursor"]}


class Counting:
    """Check that events count upwards without a gap, and tell when the last one came."""

    def __init__(self, last: int) -> None:
        self.next: int | None = None
        self.finished = asyncio.Event()
        self._last = last

    def __call__(self, told: dict[str, Any]) -> None:
        number = told["data"]["n"]
        assert self.next in (None, number), f"{number} came where {self.next} was to come"
        self.next = number + 1
        if number == self._last:
            self.finished.set()


async def _main(socket: str, pattern: str, last: str) -> None:
    counting = Counting(int(last))
    follower = Follower(Path(socket), [pattern], counting)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follower.follow(_at_once))
        await follower.caught_up.wait()
        print("caught up", flush=True)
        await counting.finished.wait()
        print(f"finished gaps={follower.gaps} connections={follower.connections}", flush=True)
        following.cancel()


async def _at_once() -> None:
    pass


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
