"""A client's end of the wire, over any number of connections, without I/O.

Both clients drive it alike: ``start`` and ``cancel`` exchanges, write ``data_to_send()``, feed what
arrives to ``receive``, and say when a connection is ``connected`` or ``lost``. It holds requests back
while there is no connection or too many are in flight, and sends again what may be sent again.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

from ksi_client.exchanges import Entry, Exchange, Feed, Subscription
from ksi_client.outgoing import with_id
from ksi_common.errors import FailedPrecondition, InvalidArgument, KSIError
from ksi_common.frames import Answer, Asked, Cancel, End, Failure, FrameId, FromDaemon, Reply, Revoked
from ksi_common.protocol import ClientConnection, LineTooLong
from ksi_common.records import record

MAX_IN_FLIGHT: Final = 128
"""Unary requests of one connection that the daemon takes at once."""


@record
class ClientStatistics:
    """What a client is doing."""

    connected: bool
    connections: int
    """Made since the client was opened; more than one: it reconnected."""
    in_flight: int
    """Requests and streams that the daemon is working on."""
    held_back: int
    """Requests that wait for a connection, or for one of those in flight to end."""
    paused: int
    """Subscriptions whose buffer was full."""


class Session:
    """What a client has under way."""

    def __init__(self) -> None:
        self.connection_made = False
        self.refusal: KSIError | None = None
        """What the daemon said to the connection as a whole, before it closed it."""
        self.heard = False
        """Something came over this connection."""
        self._connections = 0
        self._ids = count(1)
        self._wire = ClientConnection()
        self._outgoing: list[bytes] = []
        self._sent: dict[FrameId, Exchange | None] = {}
        self._unary: set[FrameId] = set()
        # Not bounded here: each has a caller that waits for it.
        self._held: OrderedDict[Exchange, None] = OrderedDict()
        self._paused: set[Subscription] = set()
        self._parked: list[Exchange] = []
        self._unclaimed = 0
        self.asked: Callable[[Asked | Revoked], None] | None = None
        """Hears what the daemon asks, where this client serves."""

    def start(self, exchange: Exchange) -> None:
        """Send a request, as soon as there is a connection with room for it; the order is kept."""
        self._held[exchange] = None
        self._send_held()

    def cancel(self, exchange: Exchange) -> None:
        """Stop a request whose answer nobody waits for any more."""
        ident = exchange.ident
        exchange.finish()
        self._held.pop(exchange, None)
        if exchange in self._parked:
            self._parked.remove(exchange)
        if isinstance(exchange, Subscription):
            self._paused.discard(exchange)
        if ident is not None and self._sent.get(ident) is exchange:
            self._disown(ident)

    def pop(self, feed: Feed) -> Entry | None:
        """Take the oldest entry of a feed; one that was full goes on once there is room."""
        entry = feed.pop()
        if isinstance(feed, Subscription) and feed.paused and feed.has_room and not feed.done:
            feed.paused = False
            self._paused.discard(feed)
            feed.rewind()
            self.start(feed)
        return entry

    def say(self, line: bytes) -> None:
        """Send a frame that nothing answers; without a connection there is nobody to hear it."""
        if self.connection_made:
            self._outgoing.append(line)

    @property
    def connections(self) -> int:
        """How many connections were made."""
        return self._connections

    def data_to_send(self) -> bytes:
        """Give the bytes to write, once."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes) -> None:
        """Take bytes of the daemon; raise FailedPrecondition where they are not version 1 of the wire."""
        self.heard = True
        self._unclaimed += len(data)
        answers = self._decode(data)
        if not answers:
            return
        # A refusal is the last that a connection says; one that something follows was none.
        self.refusal = None
        share = self._unclaimed // len(answers)
        self._unclaimed = 0
        for answer in answers:
            if not isinstance(answer, Asked | Revoked):
                self._take(answer, share)
            elif self.asked is not None:
                self.asked(answer)
        self._send_held()

    def connected(self) -> None:
        """Begin on a new connection: everything that waits is sent."""
        self.connection_made = True
        self.refusal = None
        self.heard = False
        self._connections += 1
        self._wire = ClientConnection()
        self._unclaimed = 0
        self._send_held()

    def lost(self) -> None:
        """Hear that the connection ended: what may be sent again waits for the next, the rest fails."""
        self.connection_made = False
        self._outgoing.clear()
        self._unary.clear()
        under_way = [*self._parked, *(exchange for exchange in self._sent.values() if exchange is not None)]
        self._sent.clear()
        self._parked.clear()
        refused = self.refusal is not None
        again = [exchange for exchange in under_way if exchange.interrupt(refused=refused)]
        for exchange in reversed(again):
            exchange.rewind()
            self._held[exchange] = None
            self._held.move_to_end(exchange, last=False)

    def fail(self, error: KSIError) -> None:
        """Give up: everything that waits for the daemon gets ``error``."""
        self.connection_made = False
        abandoned = [*self._all()]
        for collection in (self._sent, self._unary, self._held, self._paused, self._parked, self._outgoing):
            collection.clear()
        for exchange in abandoned:
            exchange.give_up(error)

    @property
    def idle(self) -> bool:
        """Tell whether nothing waits for the daemon."""
        return next(self._all(), None) is None

    def statistics(self) -> ClientStatistics:
        """Give figures."""
        return ClientStatistics(
            connected=self.connection_made,
            connections=self._connections,
            in_flight=len(self._sent),
            held_back=len(self._held) + len(self._parked),
            paused=len(self._paused),
        )

    def _decode(self, data: bytes) -> list[FromDaemon]:
        try:
            return self._wire.receive(data)
        except (LineTooLong, InvalidArgument, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FailedPrecondition(
                f"the daemon sent a line that this client cannot read: {error!r}",
                reason="protocol_mismatch",
                hint="use a client and a daemon of the same version",
            ) from error

    def _send_held(self) -> None:
        while self._held and self.connection_made:
            exchange = next(iter(self._held))
            if exchange.unary and len(self._unary) >= MAX_IN_FLIGHT:
                return
            del self._held[exchange]
            self._send(exchange)

    def _send(self, exchange: Exchange) -> None:
        ident = next(self._ids)
        exchange.ident = ident
        self._sent[ident] = exchange
        if exchange.unary:
            self._unary.add(ident)
        self._outgoing.append(with_id(exchange.line, ident))

    def _take(self, answer: Answer, size: int) -> None:
        ident = answer.id
        if ident is None:
            self.refusal = answer.error if isinstance(answer, Failure) else None
            return
        exchange = self._sent.get(ident)
        terminal = isinstance(answer, Reply | End | Failure)
        if terminal:
            self._sent.pop(ident, None)
            self._unary.discard(ident)
        if exchange is None:
            return
        if exchange.resend and isinstance(answer, Failure) and is_passing(answer.error):
            self._parked.append(exchange)
            return
        exchange.take(answer, size)
        if not terminal:
            self._check(ident, exchange)

    def _check(self, ident: FrameId, exchange: Exchange) -> None:
        """Stop what has ended here, or has no room, while the daemon goes on with it."""
        if isinstance(exchange, Feed) and exchange.full:
            exchange.overflow()
            self._disown(ident)
            if isinstance(exchange, Subscription):
                self._paused.add(exchange)
        elif exchange.done:
            self._disown(ident)

    def _disown(self, ident: FrameId) -> None:
        # It keeps its place among those in flight until the daemon ends it, as the daemon counts it too.
        self._sent[ident] = None
        self._outgoing.append(Cancel(ident).encode())

    def _all(self) -> Iterator[Exchange]:
        yield from (exchange for exchange in self._sent.values() if exchange is not None)
        yield from self._held
        yield from self._paused
        yield from self._parked


def is_passing(error: KSIError) -> bool:
    """Tell whether ``error`` says only that this daemon is going: the next one will answer."""
    return error.code == "UNAVAILABLE" and error.details.get("reason") == "shutting_down"
