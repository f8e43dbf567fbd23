"""The asyncio client."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from ksi_client import typed
from ksi_client.async_items import AsyncItems
from ksi_client.async_link import AsyncLink
from ksi_client.connecting import Address, socket_path
from ksi_client.consumed import Consumed
from ksi_client.exchanges import Consumption, Entry, Feed, Question
from ksi_client.keys import key_source
from ksi_client.raw import Start, data_of, keyed
from ksi_client.session import ClientStatistics
from ksi_client.timeouts import CONNECT_TIMEOUT_S, GRACE_S, TIMEOUT_S, late
from ksi_common.bus import Delivered
from ksi_common.errors import Unavailable
from ksi_common.frames import Call, Mark
from ksi_common.messages import Message, Notification, Request, Stream

R = TypeVar("R", bound=Message)
T = TypeVar("T")


class AsyncClient:
    """Ask, follow, tell and listen over the daemon's socket: a ``Bus``.

    async with AsyncClient() as client:
        found = await client.call(state.Get(key="color"))

    Any number of tasks may use one client. Requests are dispatched in the order they were made, and more
    than 128 at once wait here for their turn. ``connect_timeout_s``: how long to try to connect, at first
    and whenever the connection is lost while something is under way; None: for ever. ``timeout_s``: how
    long a request may take where the call does not say.

    A lost connection is made again, and requests that were in flight are sent again. They take effect once:
    what is not ``safe`` has an idempotency key. What cannot be sent again within ``connect_timeout_s`` fails
    with Unavailable (``connection_lost``); streams fail; subscriptions go on after the last event that came.
    """

    def __init__(
        self,
        socket: Address | None = None,
        *,
        connect_timeout_s: float | None = CONNECT_TIMEOUT_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._timeout_s = timeout_s
        self._link = AsyncLink(socket_path(socket), connect_timeout_s=connect_timeout_s)
        self._new_key = key_source()

    async def __aenter__(self) -> Self:
        await self._link.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._link.close(Unavailable("the client was closed", reason="client_closed", retryable=False))

    async def call(self, request: Request[R], *, timeout_s: float | None = None, key: str | None = None) -> R:
        """Ask for one reply; raise the KSIError that the handler, or the way to it, gives.

        Cancelling this stops the handler. ``key``: the idempotency key to use; without it, a call that is not
        ``safe`` has one of its own.
        """
        question = typed.question(request, self._time(timeout_s), key=key, new_key=self._new_key)
        return typed.reply(request, await self._ask(question))

    async def call_raw(
        self,
        event: str,
        data: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        safe: bool = False,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Ask by name for one reply. ``safe``: it changes nothing, and needs no idempotency key."""
        call = Call(event, dict(data or {}), timeout_s=self._time(timeout_s), idempotency_key=key)
        return await self._ask(keyed(call, self._new_key, safe=safe))

    def stream(self, request: Stream[R], *, timeout_s: float | None = None) -> AsyncItems[R]:
        """Ask for many items, from now on; closing what this gives stops the handler."""
        return self._follow(typed.feed(request, timeout_s), typed.items_of(request))

    def stream_raw(
        self, event: str, data: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> AsyncItems[dict[str, Any]]:
        """Ask by name for many items; a plain reply counts as the only one."""
        return self._follow(Feed(Call(event, dict(data or {}), timeout_s=timeout_s)), data_of)

    async def notify(self, notification: Notification) -> None:
        """Tell what happened; returns once it is stored (unless ephemeral). For undeclared names."""
        await self._ask(typed.told(notification, self._timeout_s))

    @overload
    def subscribe(
        self, patterns: str | Sequence[str], *, start: Start = "now", marks: Literal[False] = False
    ) -> AsyncItems[Delivered]: ...

    @overload
    def subscribe(
        self, patterns: str | Sequence[str], *, start: Start = "now", marks: Literal[True]
    ) -> AsyncItems[Delivered | Mark]: ...

    def subscribe(
        self, patterns: str | Sequence[str], *, start: Start = "now", marks: bool = False
    ) -> AsyncItems[Delivered] | AsyncItems[Delivered | Mark]:
        """Follow events that match, in order, with no gap and no duplicate, over lost connections too.

        ``start``: "now", "beginning", {"cursor": …} or {"time": …}. It begins when this returns: what this
        client tells afterwards is seen. ``marks``: give ``caught_up``, ``heartbeat`` and ``gap`` too; without
        it a gap is logged as a warning.
        """
        feed = typed.subscription(patterns, start)
        if marks:
            everything: AsyncItems[Delivered | Mark] = self._follow(feed, typed.delivered_or_mark)
            return everything
        events: AsyncItems[Delivered] = self._follow(feed, typed.delivered)
        return events

    def consume(
        self,
        name: str,
        patterns: str | Sequence[str],
        *,
        group: str | None = None,
        start: Start = "now",
        max_inflight: int | None = None,
    ) -> AsyncItems[Consumed]:
        """Follow under a name whose cursor the daemon keeps: it goes on with what is not acknowledged.

        ``async for item in …`` and ``await item.ack()`` when it is done. With ``group`` the members of that
        name share the events by key, and ``name`` is this member's. ``start`` counts the first time only.
        Each event comes at least once: again after a crash, a lost connection or a ``nak``, and says its
        ``attempt``.
        """
        feed = typed.consumption(name, patterns, start, group=group, max_inflight=max_inflight)

        def convert(entry: Entry) -> Consumed | None:
            if isinstance(entry, Mark):
                typed.delivered(entry)
                return None
            report = partial(self._report, feed, entry.cursor or "")
            return Consumed(**typed.facts_of(entry), report=report)

        return self._follow(feed, convert)

    def statistics(self) -> ClientStatistics:
        """Give figures."""
        return self._link.statistics()

    async def _report(self, feed: Consumption, cursor: str, **refusal: Any) -> None:
        await self._ask(typed.report(feed, cursor, self._timeout_s, **refusal))

    def _time(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    async def _ask(self, question: Question) -> dict[str, Any]:
        assert question.call.timeout_s is not None
        arrived = asyncio.get_running_loop().create_future()
        question.wake = partial(_settle, arrived)
        try:
            async with asyncio.timeout(question.call.timeout_s + GRACE_S):
                await self._link.wait_writable()
                self._link.start(question)
                await arrived
        except TimeoutError:
            raise late(question.call) from None
        finally:
            if not question.done:
                self._link.cancel(question)
        return question.result()

    def _follow(self, feed: Feed, convert: Callable[[Entry], T | None]) -> AsyncItems[T]:
        timeout_s = feed.call.timeout_s
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s + GRACE_S
        self._link.check_open()  # before there are items, which would be let go of
        items = AsyncItems(self._link, feed, convert, deadline=deadline)
        self._link.start(feed)
        return items


def _settle(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)
