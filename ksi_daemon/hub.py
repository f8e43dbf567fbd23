"""Who hears what, now: events of one turn of the loop are joined, rendered once, and pushed once."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from ksi_common.envelope import StoredEvent
from ksi_common.messages import matches
from ksi_common.strict_json import dumps
from ksi_daemon.shared_bytes import SharedBytes
from ksi_daemon.supervisor import for_each

MANY: Final = 16
"""Taps of a channel from which on their bytes are shared, where that can be."""
_ROUTES: Final = 10_000
_ITEM: Final = (
    b',"type":"item","cursor":"%b","data":{"event":%b,"data":%b,"event_id":%b,"stream":%b,"version":%b,'
    b'"correlation_id":%b,"causation_id":%b,"actor":%b,"time":"%b"%b}}\n'
)


class Batch:
    """Events for one subscriber, and the position that they bring it to."""

    __slots__ = ("_log_id", "_rendered", "events", "head", "shared", "size")

    def __init__(self, events: Sequence[StoredEvent], head: int, log_id: str) -> None:
        self.events = events
        self.head = head
        self.size = sum([len(event.data) for event in events])
        """Bytes of data, without the frames around it."""
        self.shared: SharedBytes | None = None
        """What its lines are sent by, while it is on its way to many."""
        self._log_id = log_id
        self._rendered: dict[bytes, bytes] = {}

    def lines(self, ident: bytes) -> bytes:
        """Give item frames with this id (JSON); subscribers with the same id share the bytes."""
        lines = self._rendered.get(ident)
        if lines is None:
            start = b'{"id":' + ident
            lines = start + start.join([self._render(event) for event in self.events])
            self._rendered[ident] = lines
        return lines

    def _render(self, event: StoredEvent) -> bytes:
        line = event.line
        if line is None:
            line = event.line = item_tail(event, f"{self._log_id}-{event.position}")
        return line


def item_tail(event: StoredEvent, cursor: str) -> bytes:
    """Render all of an item frame but ``{"id":…``, from parts that are JSON already."""
    return _ITEM % (
        cursor.encode(),
        dumps(event.event),
        event.data,
        dumps(event.event_id),
        dumps(event.stream),
        dumps(event.version),
        dumps(event.correlation_id),
        dumps(event.causation_id),
        dumps(event.actor),
        event.time.encode(),
        b',"raw":true' if event.raw else b"",
    )


class Tap(Protocol):
    """Where a live subscriber takes its events."""

    def deliver(self, batch: Batch) -> None:
        """Take a batch; never waits, never raises."""
        ...


class Channel:
    """Subscribers that asked for the same: they get the same batches."""

    __slots__ = ("patterns", "pending", "stream", "taps")

    def __init__(self, patterns: frozenset[str], stream: str | None) -> None:
        self.patterns = patterns
        self.stream = stream
        self.taps: dict[Tap, None] = {}
        self.pending: list[StoredEvent] = []

    def wants(self, event: str) -> bool:
        """Tell whether an event of this name is asked for."""
        return any(matches(pattern, event) for pattern in self.patterns)


class Hub:
    """Publish events to the taps attached. Lives on the loop; nothing here waits."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self.head = 0
        """The last seq published."""
        self.log_id = ""
        self._call_soon = call_soon
        self._channels: dict[tuple[frozenset[str], str | None], Channel] = {}
        self._routes: dict[str, tuple[Channel, ...]] = {}
        self._dirty: list[Channel] = []
        self.delivered = 0

    @property
    def subscriptions(self) -> int:
        """How many taps are attached."""
        return sum(len(channel.taps) for channel in self._channels.values())

    def publish(self, events: Iterable[StoredEvent], head: int) -> None:
        """Take events of a commit (``head``: its last seq) or ephemeral ones (``head``: as it is)."""
        self.head = head
        if not self._channels:
            return
        for event in events:
            if event.seq is None:
                event.after = head
            route = self._routes.get(event.event)
            for channel in self._route(event.event) if route is None else route:
                if channel.stream is None or channel.stream == event.stream:
                    self._queue(channel, event)

    def attach(self, tap: Tap, patterns: Iterable[str], stream: str | None) -> Channel:
        """Deliver to ``tap`` what is published from now on."""
        key = (frozenset(patterns), stream)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(*key)
            self._routes.clear()
        else:
            self.settle(channel)
        channel.taps[tap] = None
        return channel

    def settle(self, channel: Channel) -> None:
        """Push what waits for the end of the turn: afterwards its taps have all up to ``head``."""
        if channel.pending:
            self._push(channel)

    def detach(self, tap: Tap, channel: Channel) -> None:
        """Deliver nothing more to ``tap``; may be called twice."""
        channel.taps.pop(tap, None)
        key = (channel.patterns, channel.stream)
        if not channel.taps and self._channels.get(key) is channel:
            del self._channels[key]
            self._routes.clear()

    def _route(self, event: str) -> tuple[Channel, ...]:
        if len(self._routes) >= _ROUTES:
            self._routes.clear()
        route = tuple(channel for channel in self._channels.values() if channel.wants(event))
        self._routes[event] = route
        return route

    def _queue(self, channel: Channel, event: StoredEvent) -> None:
        if not channel.pending:
            if not self._dirty:
                self._call_soon(self._flush)
            self._dirty.append(channel)
        channel.pending.append(event)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for_each(dirty, self.settle)

    def _push(self, channel: Channel) -> None:
        batch = Batch(channel.pending, self.head, self.log_id)
        channel.pending = []
        self.delivered += len(batch.events) * len(channel.taps)
        if len(channel.taps) >= MANY:
            batch.shared = SharedBytes()
        try:
            for_each(tuple(channel.taps), lambda tap: tap.deliver(batch))
        finally:
            shared, batch.shared = batch.shared, None
            if shared is not None:
                shared.close()
