"""A log with its hub, and a subscriber that reads as fast as the test lets it."""

import asyncio
from asyncio import TaskGroup
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ksi_common.envelope import StoredEvent
from ksi_common.frames import MarkKind
from ksi_common.strict_json import loads
from ksi_daemon.cursors import parse_cursor
from ksi_daemon.database import Database
from ksi_daemon.eventlog import EventLog
from ksi_daemon.hub import Batch, Hub
from ksi_daemon.subscriptions import Interest, Subscriptions
from tests.support.databases import Heard, opened, tell


@dataclass(frozen=True)
class Got:
    """What a subscriber got: an event, or a mark."""

    cursor: str
    event_id: str | None = None
    seq: int | None = None
    """None of a mark, and of an ephemeral event."""
    mark: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def position(self) -> int:
        return parse_cursor(self.cursor).seq


class SlowSink:
    """Holds as many events as it may, until they are read."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        self.capacity = capacity
        self.unread = 0
        self.got: list[Got] = []
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def full(self) -> bool:
        return self.unread >= self.capacity

    def deliver(self, batch: Batch) -> None:
        frames = [loads(line) for line in batch.lines(b"1").splitlines()]
        for event, frame in zip(batch.events, frames, strict=True):
            assert frame["data"]["event_id"] == event.event_id
            self.got.append(Got(frame["cursor"], event.event_id, event.seq))
        self.unread += len(batch.events)
        self._changed.set()

    def mark(self, kind: MarkKind, cursor: str, fields: Mapping[str, Any]) -> None:
        self.got.append(Got(cursor, mark=kind, fields=fields))
        self._changed.set()

    async def wait_drained(self) -> None:
        while self.unread > self.capacity // 2:
            self._drained.clear()
            await self._drained.wait()

    def read(self, count: int = 1_000_000) -> None:
        """Take events out: there is room again."""
        self.unread = max(0, self.unread - count)
        self._drained.set()

    async def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until what was got satisfies the test; read meanwhile what comes."""
        async with asyncio.timeout(30):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    async def wait_for_event(self, event_id: str) -> None:
        await self.wait_until(lambda: any(got.event_id == event_id for got in self.got))

    async def wait_for_mark(self, kind: str, count: int = 1) -> None:
        await self.wait_until(lambda: len(self.marks(kind)) >= count)

    def marks(self, kind: str) -> list[Got]:
        return [got for got in self.got if got.mark == kind]

    @property
    def ids(self) -> list[str]:
        return [got.event_id for got in self.got if got.event_id is not None]

    @property
    def seqs(self) -> list[int]:
        return [got.seq for got in self.got if got.seq is not None]

    @property
    def story(self) -> list[str]:
        """The ids of events and the kinds of marks, in order."""
        return [got.event_id or f"<{got.mark}>" for got in self.got]


class Followed:
    """A database, its hub, and subscribers to it."""

    def __init__(self, tasks: TaskGroup, database: Database, hub: Hub, heartbeat_s: float) -> None:
        self.database = database
        self.hub = hub
        self.log = EventLog(database)
        self.subscriptions = Subscriptions(hub, self.log, heartbeat_s=heartbeat_s)
        self._tasks = tasks
        self._following: list[asyncio.Task[None]] = []

    def follow(
        self, start: str | Mapping[str, Any] = "now", sink: SlowSink | None = None, **interest: Any
    ) -> SlowSink:
        """Begin to feed a sink."""
        sink = sink or SlowSink()
        wanted = Interest(interest.pop("patterns", ["*"]), start=start, **interest)
        self._following.append(self._tasks.create_task(self.subscriptions.follow(wanted, sink)))
        return sink

    async def stop(self) -> None:
        """End every feed, and let it detach."""
        following, self._following = self._following, []
        for task in following:
            task.cancel()
        await asyncio.wait(following)

    async def tell(self, *ids: str, event: str = "demo:told", **options: Any) -> None:
        """Store events, as few as fit into a group in one commit; they are published when this returns."""
        stored = [self.database.write(tell(event_id, event, **options)) for event_id in ids]
        for each in stored:
            await each

    def pass_by(self, event_id: str, event: str = "demo:passing", stream: str | None = None) -> None:
        """Tell an ephemeral event."""
        passing = StoredEvent(event, b"{}", event_id, "c", None, "owner", 0, 0, stream=stream)
        self.hub.publish([passing], self.hub.head)


@asynccontextmanager
async def followed(folder: Path, *, heartbeat_s: float = 60.0) -> AsyncIterator[Followed]:
    """Open a database with a hub; feeds end with the block."""
    hub = Hub(asyncio.get_running_loop().call_soon)

    def published(events: Sequence[StoredEvent], head: int) -> None:
        hub.publish(events, head)

    async with opened(folder, Heard(), published=published) as database, TaskGroup() as tasks:
        hub.log_id, hub.head = database.log_id, database.head
        made = Followed(tasks, database, hub, heartbeat_s)
        try:
            yield made
        finally:
            if made._following:
                await made.stop()
