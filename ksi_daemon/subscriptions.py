"""Subscribers: from the log, then live, and back to the log where they do not keep up.

One ordered stream with no gap and no duplicate. The log is the buffer: a subscriber that lags costs
no memory beyond its own bounded one, and nobody else notices.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from ksi_common.clock import parse_time
from ksi_common.envelope import StoredEvent
from ksi_common.frames import MarkKind
from ksi_common.records import record
from ksi_daemon.eventlog import PAGE, Damage, EventLog, Place
from ksi_daemon.hub import Batch, Hub

MAX_EVENTS: Final = 10_000
MAX_BYTES: Final = 8 * 1024 * 1024
HEARTBEAT_S: Final = 10.0
PAGES_AT_ONCE: Final = 2
"""Pages in memory, on their way to subscribers that catch up; there are no more readers anyway."""

Overflow = Literal["log", "drop_oldest", "latest_per_key"]


class Sink(Protocol):
    """Where a subscriber's events go: a connection, or a queue in the process."""

    @property
    def full(self) -> bool:
        """Tell whether it holds as much unread as it may."""
        ...

    def deliver(self, batch: Batch) -> None:
        """Take events; never waits."""
        ...

    def mark(self, kind: MarkKind, cursor: str, fields: Mapping[str, Any]) -> None:
        """Take a mark."""
        ...

    async def wait_drained(self) -> None:
        """Return when it may be filled again."""
        ...


@record
class Interest:
    """What a subscriber wants. ``start``: "now", "beginning", {"cursor": …} or {"time": …}."""

    patterns: Sequence[str]
    stream: str | None = None
    start: str | Mapping[str, Any] = "now"
    overflow: Overflow = "log"


@record
class SubscriptionStatistics:
    """Who follows at present, the daemon's own subscribers too."""

    count: int
    behind: int
    """Of them, those that read the log rather than what is published."""
    slow: int
    """Of them, those that could not keep up at least once."""


class Subscriptions:
    """Make feeds: one for each subscriber."""

    def __init__(self, hub: Hub, log: EventLog, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.hub = hub
        self.log = log
        self.heartbeat_s = heartbeat_s
        self.reading = asyncio.Semaphore(PAGES_AT_ONCE)
        self._feeds: set[_Feed] = set()

    @property
    def statistics(self) -> SubscriptionStatistics:
        """Give figures of this moment."""
        feeds = self._feeds
        return SubscriptionStatistics(
            len(feeds), sum(not feed.is_live for feed in feeds), sum(feed.overflows > 0 for feed in feeds)
        )

    def pinned(self, start: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
        """Give a start that is the same place later: "now" becomes the end of the log."""
        return {"cursor": self.log.cursor(self.hub.head)} if start == "now" else start

    async def follow(self, interest: Interest, sink: Sink) -> None:
        """Feed ``sink`` until cancelled."""
        feed = _Feed(self, interest, sink)
        self._feeds.add(feed)
        try:
            await feed.run()
        finally:
            self._feeds.discard(feed)
            feed.stop()


class _Feed:
    """One subscriber's way through the log; its position is the last seq that its sink has, or needs not."""

    def __init__(self, subscriptions: Subscriptions, interest: Interest, sink: Sink) -> None:
        self._hub = subscriptions.hub
        self._log = subscriptions.log
        self._heartbeat_s = subscriptions.heartbeat_s
        self._reading = subscriptions.reading
        self._interest = interest
        self._sink = sink
        self._position = 0
        self._opens_us: int | None = None
        """It begins with the first event told then, or later; there was none yet."""
        self._state: Literal["behind", "holding", "live"] = "behind"
        self._held: list[Batch] = []
        self._held_events = 0
        self._held_bytes = 0
        self._missed = 0
        self.overflows = 0
        """How often it could not keep up."""
        self._caught_up = False
        self._overflowed = asyncio.Event()
        self._skipped = _skipping(interest.overflow)
        self._channel = self._hub.attach(self, interest.patterns, interest.stream)

    @property
    def is_live(self) -> bool:
        """Tell whether it gets what is published, rather than what the log has."""
        return self._state == "live"

    def stop(self) -> None:
        """Take no more; may be called twice."""
        self._hub.detach(self, self._channel)

    async def run(self) -> None:
        """Catch up, go live, and begin again after each overflow."""
        await self._find_start()
        while True:
            await self._catch_up()
            if not self._caught_up:
                self._caught_up = True
                self._mark("caught_up")
            await self._wait_overflow()
            await self._sink.wait_drained()
            if self._skipped is not None:
                self._deliver_skipped(self._skipped)

    def deliver(self, batch: Batch) -> None:
        """Take a batch of the hub, according to where this subscriber is."""
        if self._state == "live":
            if self._sink.full:
                self._overflow(batch)
            else:
                self._position = batch.head
                self._give(batch)
        elif self._state == "holding":
            self._held.append(batch)
            self._held_events += len(batch.events)
            self._held_bytes += batch.size
            if self._held_bytes > MAX_BYTES or self._held_events > MAX_EVENTS:
                self._let_go()
        else:
            self._pass_by(batch)

    def _let_go(self) -> None:
        held, self._held = self._held, []
        self._state = "behind"
        for batch in held:
            self._pass_by(batch)

    def _overflow(self, batch: Batch) -> None:
        self._state = "behind"
        self.overflows += 1
        self._overflowed.set()
        self._pass_by(batch)

    def _pass_by(self, batch: Batch) -> None:
        if self._skipped is not None and self._caught_up:
            self._skipped.add(batch)
        elif self._caught_up:
            self._missed += sum(event.seq is None for event in batch.events)

    async def _find_start(self) -> None:
        match self._interest.start:
            case "now":
                self._position = self._hub.head
            case "beginning":
                self._go_to(self._log.beginning)
            case {"cursor": str(text)}:
                self._go_to(self._log.locate(text, self._hub.head))
            case {"time": str(text)}:
                time_us = parse_time(text)
                self._position = await self._log.position_at(time_us)
                if self._position >= self._hub.head:
                    self._opens_us = time_us

    def _go_to(self, place: Place) -> None:
        self._position = place.seq
        if place.gap is not None:
            self._mark("gap", reason=place.gap, **({"lost": place.lost} if place.lost else {}))

    async def _catch_up(self) -> None:
        """Read the log to its head: once that is near, hold what is published meanwhile, then let it go."""
        while self._state != "live":
            if self._hub.head - self._position <= PAGE:
                self._hold()
            target = self._hub.head
            await self._read_to(target)
            if self._state == "holding":
                self._release()

    def _hold(self) -> None:
        self._hub.settle(self._channel)
        self._held, self._held_events, self._held_bytes = [], 0, 0
        self._state = "holding"

    def _release(self) -> None:
        held, self._held = self._held, []
        self._state = "live"
        self._overflowed.clear()
        if self._missed:
            self._mark("gap", reason="ephemeral_missed", missed=self._missed)
            self._missed = 0
        for batch in held:
            self.deliver(batch)

    async def _read_to(self, target: int) -> None:
        beat = asyncio.get_running_loop().time() + self._heartbeat_s
        while self._position < target:
            async with self._reading:
                # While this one waited for its turn, another of the same client may have filled the sink.
                empty = not self._sink.full and not await self._read_page(target)
            if empty and asyncio.get_running_loop().time() > beat:
                beat += self._heartbeat_s
                self._mark("heartbeat")
            if self._sink.full:
                await self._sink.wait_drained()

    async def _read_page(self, target: int) -> bool:
        if self._position < self._log.horizon:
            self._go_to(self._log.beginning_after(self._position))
        page = await self._log.page(self._position, target, self._interest.patterns, self._interest.stream)
        for damage in page.damaged:
            self._mark("gap", **_gap(damage))
        if page.removed:
            self._mark("gap", reason="retention", removed=page.removed)
        self._position = page.last
        if page.events:
            self._give(Batch(page.events, page.last, self._log.log_id))
        return bool(page.events)

    async def _wait_overflow(self) -> None:
        while not self._overflowed.is_set():
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._overflowed.wait()
            except TimeoutError:
                self._hub.settle(self._channel)
                if self._state == "live" and not self._sink.full:
                    self._position = self._hub.head
                    self._mark("heartbeat")

    def _deliver_skipped(self, skipped: "_Skipped") -> None:
        self._hub.settle(self._channel)
        events, dropped = skipped.take()
        if dropped:  # from where it had everything: the events that were kept are still to come
            self._mark("gap", reason="overflow", dropped=dropped)
        self._position = self._hub.head
        if events:
            self._give(Batch(events, self._position, self._log.log_id))

    def _give(self, batch: Batch) -> None:
        if self._opens_us is None:
            self._sink.deliver(batch)
            return
        for index, event in enumerate(batch.events):
            if event.time_us >= self._opens_us:
                self._opens_us = None
                self._sink.deliver(Batch(batch.events[index:], batch.head, self._log.log_id))
                return

    def _mark(self, kind: MarkKind, **fields: Any) -> None:
        self._sink.mark(kind, self._log.cursor(self._position), fields)


def _gap(damage: Damage) -> dict[str, Any]:
    if damage.reason == "compacted":
        return {"reason": "horizon", "lost": damage.count}
    return {
        "reason": "corrupt",
        "seq": damage.seq,
        "count": damage.count,
        "event_id": damage.event_id,
        "why": damage.reason,
    }


class _Skipped:
    """What a subscriber that wants the newest rather than all has yet to be given: one event of each key."""

    def __init__(self, key: Callable[[StoredEvent], object]) -> None:
        self._key = key
        self._kept: dict[object, StoredEvent] = {}
        self._bytes = 0
        self._dropped = 0

    def add(self, batch: Batch) -> None:
        for event in batch.events:
            key = self._key(event)
            if key in self._kept:
                self._drop(key)
            self._kept[key] = event
            self._bytes += len(event.data)
            while len(self._kept) > MAX_EVENTS or self._bytes > MAX_BYTES:
                self._drop(next(iter(self._kept)))

    def take(self) -> tuple[Sequence[StoredEvent], int]:
        """Give what was kept, in order, and how many were dropped."""
        taken = tuple(self._kept.values()), self._dropped
        self._kept, self._bytes, self._dropped = {}, 0, 0
        return taken

    def _drop(self, key: object) -> None:
        self._bytes -= len(self._kept.pop(key).data)
        self._dropped += 1


def _skipping(overflow: Overflow) -> _Skipped | None:
    match overflow:
        case "log":
            return None
        case "drop_oldest":
            return _Skipped(id)
        case "latest_per_key":
            return _Skipped(lambda event: event.stream or event.event)
