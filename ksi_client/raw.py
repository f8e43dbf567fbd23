"""Ask by name, with plain dictionaries, blocking. Imports no pydantic and no asyncio."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from ksi_client.blocking_link import BlockingLink
from ksi_client.connecting import Address, socket_path
from ksi_client.exchanges import Entry, Exchange, Feed, Question, Subscription
from ksi_client.items import Items
from ksi_client.keys import key_source, make_repeatable
from ksi_client.session import ClientStatistics
from ksi_client.timeouts import CONNECT_TIMEOUT_S, GRACE_S, TIMEOUT_S, late
from ksi_common.clock import SystemClock, format_time
from ksi_common.errors import Unavailable
from ksi_common.frames import Call, Item, Mark

T = TypeVar("T")

Start = str | Mapping[str, Any]


def call_raw(
    event: str,
    data: Mapping[str, Any] | None = None,
    *,
    socket: Address | None = None,
    timeout_s: float = TIMEOUT_S,
    connect_timeout_s: float | None = 0.0,
) -> dict[str, Any]:
    """Ask once, on a connection of its own; raise the KSIError that comes instead of a reply.

    Where no daemon runs that is Unavailable with ``details["reason"] == "daemon_not_running"``, at once
    unless ``connect_timeout_s`` says to wait for one.
    """
    with RawClient(socket, connect_timeout_s=connect_timeout_s) as client:
        return client.call_raw(event, data, timeout_s=timeout_s)


class RawClient:
    """A blocking client that asks by name. For one thread at a time.

    ``connect_timeout_s``: how long to try to connect, at first and whenever the connection is lost; None:
    for ever. ``timeout_s``: how long a request may take where the call does not say.
    Requests that were in flight when a connection was lost are sent again, and take effect once: what is not
    ``safe`` has an idempotency key. Subscriptions go on after the last event that came. What cannot be sent
    again within ``connect_timeout_s`` fails with Unavailable (``connection_lost``).
    """

    def __init__(
        self,
        socket: Address | None = None,
        *,
        connect_timeout_s: float | None = CONNECT_TIMEOUT_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._timeout_s = timeout_s
        self._link = BlockingLink(socket_path(socket), connect_timeout_s=connect_timeout_s)
        self._new_key = key_source()

    def __enter__(self) -> Self:
        self._link.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; may be called twice. A later request connects again."""
        self._link.close(Unavailable("the client was closed", reason="client_closed", retryable=False))

    def call_raw(
        self,
        event: str,
        data: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        safe: bool = False,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Ask for one reply. ``safe``: it changes nothing, and needs no idempotency key.

        ``key``: the one to use; without it, each call has one of its own.
        """
        call = Call(event, dict(data or {}), timeout_s=self._time(timeout_s), idempotency_key=key)
        return self._ask(keyed(call, self._new_key, safe=safe))

    def stream_raw(
        self, event: str, data: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Items[dict[str, Any]]:
        """Ask for many items; a plain reply counts as the only one."""
        return self._follow(Feed(Call(event, dict(data or {}), timeout_s=timeout_s)), data_of)

    def subscribe_raw(
        self, patterns: str | Sequence[str], *, start: Start = "now", timeout_s: float | None = None
    ) -> Items[Item | Mark]:
        """Follow events: items and marks as they are on the wire; a lost connection is made again."""
        return self._follow(
            Subscription(subscribe_call(patterns, start, timeout_s), asked=time_now()), _as_it_is
        )

    def statistics(self) -> ClientStatistics:
        """Give figures."""
        return self._link.statistics()

    def _time(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    def _ask(self, question: Question) -> dict[str, Any]:
        deadline = deadline_of(question)
        with self._link.turn():
            try:
                self._link.start(question)
                while not question.done:
                    if time.monotonic() >= deadline:
                        raise late(question.call)
                    self._link.wait(deadline)
            finally:
                if not question.done:
                    self._link.cancel(question)
        return question.result()

    def _follow(self, feed: Feed, convert: Callable[[Entry], T | None]) -> Items[T]:
        with self._link.turn():
            self._link.start(feed)
        return Items(self._link, feed, convert, deadline=deadline_of(feed))


def keyed(call: Call, new_key: Callable[[], str], *, safe: bool, idempotent: bool = False) -> Question:
    """Make the exchange of a request that may be sent again: ``safe`` as it is, or made so."""
    if safe:
        return Question(call, resend=True)
    resend = call.idempotency_key is not None or make_repeatable(call, new_key())
    return Question(call, resend=resend, retryable=idempotent, changes=True)


def subscribe_call(patterns: str | Sequence[str], start: Start, timeout_s: float | None = None) -> Call:
    """Give the request that a subscription makes."""
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    given = start if isinstance(start, str) else dict(start)
    return Call("event:subscribe", {"patterns": listed, "start": given}, timeout_s=timeout_s)


def time_now() -> str:
    """Give the time of day, as a subscription may begin at."""
    return format_time(SystemClock().time_us())


def deadline_of(exchange: Exchange) -> float:
    """Give the monotonic second at which a client stops waiting for it."""
    timeout_s = exchange.call.timeout_s
    return math.inf if timeout_s is None else time.monotonic() + timeout_s + GRACE_S


def data_of(entry: Entry) -> dict[str, Any] | None:
    """Give an item's data; of a mark nothing."""
    return entry.data if isinstance(entry, Item) else None


def _as_it_is(entry: Entry) -> Entry:
    return entry
