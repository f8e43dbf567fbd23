"""Publish ephemeral events in bursts to many subscribers that only count bytes.

One process holds the publisher and all subscribers and speaks the server's own protocol by hand, so that no
client library is measured. One subscriber, the pilot, reads its items in full; all others must have received
as many bytes as its items have.

    python benchmarks/fanout.py ksi var/run/daemon.sock --subscribers 1000
    python benchmarks/fanout.py nats nats://127.0.0.1:4222 --subscribers 1000
"""

from __future__ import annotations

import argparse
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson

from benchmarks.load import PAYLOAD, REPLY, LoadFailedError
from benchmarks.outcome import Outcome, Usage, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BURST = 64
STALLED_S = 10
DATA = orjson.dumps(PAYLOAD)


@dataclass(frozen=True, slots=True)
class Dialect:
    """Describe how to subscribe and publish in a protocol, and what its lines look like."""

    connect: Callable[[str], socket.socket]
    subscribe: bytes
    subscribed: bytes  # what a subscriber reads when it is subscribed
    publish: bytes
    is_item: Callable[[bytes], bool]
    item_lines: int
    ahead: int  # bursts on their way at most
    replies: bool  # whether a publisher is answered
    between: Callable[[bytes], bool]  # lines that may come between items


def _unix(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    return connection


def _tcp(address: str) -> socket.socket:
    url = urlsplit(address)
    connection = socket.create_connection((url.hostname or "", url.port or 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(b'CONNECT {"verbose":false}\r\n')
    return connection


DIALECTS: Mapping[str, Dialect] = {
    "ksi": Dialect(
        connect=_unix,
        subscribe=b'{"id":"s","event":"event:subscribe","data":{"patterns":["bench:ticked"],"start":"now"}}\n',
        subscribed=b'"type":"caught_up"',
        publish=b'{"event":"event:publish","data":{"event":"bench:ticked","ephemeral":true,"data":%b}}\n'
        % DATA,
        is_item=lambda line: b'"type":"item"' in line and DATA in line,
        item_lines=1,
        ahead=2,  # at most 128 in flight on a connection
        replies=True,
        between=lambda line: b'"type":"heartbeat"' in line,
    ),
    "nats": Dialect(
        connect=_tcp,
        subscribe=b"SUB bench.ticked 1\r\nPING\r\n",
        subscribed=b"PONG\r\n",
        publish=b"PUB bench.ticked %d\r\n%b\r\n" % (len(DATA), DATA),
        is_item=lambda line: line == DATA + b"\r",
        item_lines=2,  # MSG with its subject, then the payload
        ahead=4,  # where it delivers most: a fifth less with 2, no more with 8
        replies=False,
        between=lambda line: line == b"PING\r",
    ),
}


@dataclass(slots=True)
class Pilot:
    """Read the items of one subscriber in full."""

    dialect: Dialect
    items: int = 0
    item_bytes: int = 0
    _rest: bytes = b""

    def read(self, chunk: bytes) -> None:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if not self.dialect.between(line):
                self._count(line)

    def _count(self, line: bytes) -> None:
        self.item_bytes += len(line) + 1
        if self.dialect.is_item(line):
            self.items += 1
        elif self.dialect.item_lines == 1 or not line.startswith(b"MSG "):
            raise LoadFailedError(f"not an item: {line[:400]!r}")


@dataclass(slots=True)
class Publisher:
    """Publish bursts, and know when the pilot had each of them."""

    dialect: Dialect
    connection: socket.socket
    published: int = 0
    replied: int = 0
    started: deque[int] = field(default_factory=deque)
    took: list[int] = field(default_factory=list)
    last_ns: int = 0

    def may_publish(self) -> bool:
        unanswered = self.published - self.replied if self.dialect.replies else 0
        return len(self.started) < self.dialect.ahead and unanswered <= (self.dialect.ahead - 1) * BURST

    def publish(self) -> None:
        self.published += BURST
        self.started.append(time.perf_counter_ns())
        self.connection.sendall(self.dialect.publish * BURST)

    def delivered(self, items: int) -> None:
        """Take note of how many items the pilot has."""
        while self.started and items >= self.published - (len(self.started) - 1) * BURST:
            self.last_ns = time.perf_counter_ns()
            self.took.append(self.last_ns - self.started.popleft())

    def read(self, chunk: bytes) -> None:
        if self.dialect.replies:
            self.replied += chunk.count(b"\n")
            if b'"type":"error"' in chunk or REPLY not in chunk:
                raise LoadFailedError(f"not a reply: {chunk[:400]!r}")


class Fanout:
    """Hold the connections of a publisher and its subscribers in one epoll."""

    def __init__(self, dialect: Dialect, address: str, subscribers: int) -> None:
        self._poll = select.epoll()
        self._buffer = bytearray(1 << 18)
        self._view = memoryview(self._buffer)
        self._subscribers = {
            connection.fileno(): connection
            for connection in (_subscriber(dialect, address) for _ in range(subscribers))
        }
        self._bytes = dict.fromkeys(self._subscribers, 0)
        # The last to subscribe is delivered to last: what it has, the others have too, or nearly.
        self._pilot_at = next(reversed(self._subscribers))
        self.pilot = Pilot(dialect)
        self.publisher = Publisher(dialect, dialect.connect(address))
        for descriptor in (*self._subscribers, self.publisher.connection.fileno()):
            self._poll.register(descriptor, select.EPOLLIN)

    def run(self, seconds: float) -> float:
        """Publish for so many seconds and wait for the last item; return the seconds it took."""
        start = time.perf_counter_ns()
        end = start + int(seconds * 1e9)
        while time.perf_counter_ns() < end:
            while self.publisher.may_publish():
                self.publisher.publish()
            self._turn()
        while self.pilot.items < self.publisher.published or self._lagging():
            self._turn()
        return (time.perf_counter_ns() - start) / 1e9

    def _turn(self) -> None:
        ready = self._poll.poll(STALLED_S, len(self._subscribers) + 1)
        if not ready:
            raise LoadFailedError(f"nothing came for {STALLED_S} s: {len(self._lagging())} subscribers lag")
        for descriptor, _ in ready:
            connection = self._subscribers.get(descriptor, self.publisher.connection)
            size = connection.recv_into(self._buffer)
            if descriptor in self._bytes:
                self._bytes[descriptor] += size
            if descriptor == self._pilot_at:
                self.pilot.read(bytes(self._view[:size]))
                self.publisher.delivered(self.pilot.items)
            elif connection is self.publisher.connection:
                self.publisher.read(bytes(self._view[:size]))
            if not size:
                raise LoadFailedError("a connection was closed")

    def _lagging(self) -> list[int]:
        return [at for at, count in self._bytes.items() if count < self.pilot.item_bytes]

    def check(self) -> None:
        """Assert that nobody was sent much else than the items: a heartbeat may have come between."""
        most = max(self._bytes.values())
        if most > self.pilot.item_bytes + 400:
            raise LoadFailedError(
                f"a subscriber received {most} bytes, the items are {self.pilot.item_bytes}"
            )


def _subscriber(dialect: Dialect, address: str) -> socket.socket:
    connection = dialect.connect(address)
    connection.sendall(dialect.subscribe)
    seen = b""
    while dialect.subscribed not in seen or not seen.endswith(b"\n"):
        chunk = connection.recv(65536)
        if not chunk or b'"type":"error"' in seen:
            raise LoadFailedError(f"not subscribed: {seen[:400]!r}")
        seen += chunk
    return connection


def measure(dialect: Dialect, address: str, subscribers: int, seconds: float) -> Outcome:
    """Deliver for so many seconds; rate and count are deliveries, times are those of whole bursts."""
    fanout = Fanout(dialect, address, subscribers)
    began = Usage()
    took_s = fanout.run(seconds)
    busy = began.busy()
    fanout.check()
    deliveries = fanout.publisher.published * subscribers
    bursts = sorted(fanout.publisher.took)
    return Outcome(
        deliveries / took_s, percentile(bursts, 0.5) / 1e3, percentile(bursts, 0.99) / 1e3, deliveries, busy
    )


def main() -> None:
    """Run one fan-out and print its outcome as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dialect", choices=list(DIALECTS))
    parser.add_argument("address")
    parser.add_argument("--subscribers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    try:
        outcome = measure(DIALECTS[options.dialect], options.address, options.subscribers, options.seconds)
    except (LoadFailedError, OSError) as failure:
        raise SystemExit(f"fan-out failed: {failure}") from None
    print(outcome.to_json())


if __name__ == "__main__":
    main()
