"""The blocking client: the same calls as AsyncClient, without an event loop."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeVar, overload

from ksi_client import typed
from ksi_client.consumed import BlockingConsumed
from ksi_client.exchanges import Consumption, Entry
from ksi_client.items import Items
from ksi_client.raw import RawClient, Start
from ksi_common.bus import Delivered
from ksi_common.frames import Mark
from ksi_common.messages import Message, Notification, Request, Stream

R = TypeVar("R", bound=Message)


class Client(RawClient):
    """Ask, follow, tell and listen, blocking. For one thread at a time.

    with Client() as client:
        found = client.call(state.Get(key="color"))
    """

    def call(self, request: Request[R], *, timeout_s: float | None = None, key: str | None = None) -> R:
        """Ask for one reply; raise the KSIError that the handler, or the way to it, gives.

        ``key``: the idempotency key to use; without it, a call that is not ``safe`` has one of its own.
        """
        question = typed.question(request, self._time(timeout_s), key=key, new_key=self._new_key)
        return typed.reply(request, self._ask(question))

    def stream(self, request: Stream[R], *, timeout_s: float | None = None) -> Items[R]:
        """Ask for many items, from now on; closing what this gives stops the handler."""
        return self._follow(typed.feed(request, timeout_s), typed.items_of(request))

    def notify(self, notification: Notification) -> None:
        """Tell what happened; returns once it is stored (unless ephemeral). For undeclared names."""
        self._ask(typed.told(notification, self._time(None)))

    @overload
    def subscribe(
        self, patterns: str | Sequence[str], *, start: Start = "now", marks: Literal[False] = False
    ) -> Items[Delivered]: ...

    @overload
    def subscribe(
        self, patterns: str | Sequence[str], *, start: Start = "now", marks: Literal[True]
    ) -> Items[Delivered | Mark]: ...

    def subscribe(
        self, patterns: str | Sequence[str], *, start: Start = "now", marks: bool = False
    ) -> Items[Delivered] | Items[Delivered | Mark]:
        """Follow events that match, in order, with no gap and no duplicate, over lost connections too.

        ``start``: "now", "beginning", {"cursor": …} or {"time": …}. It begins when this returns: what this
        client tells afterwards is seen. ``marks``: give ``caught_up``, ``heartbeat`` and ``gap`` too; without
        it a gap is logged as a warning.
        """
        feed = typed.subscription(patterns, start)
        if marks:
            everything: Items[Delivered | Mark] = self._follow(feed, typed.delivered_or_mark)
            return everything
        events: Items[Delivered] = self._follow(feed, typed.delivered)
        return events

    def consume(
        self,
        name: str,
        patterns: str | Sequence[str],
        *,
        group: str | None = None,
        start: Start = "now",
        max_inflight: int | None = None,
    ) -> Items[BlockingConsumed]:
        """Follow under a name whose cursor the daemon keeps: it goes on with what is not acknowledged.

        ``for item in …`` and ``item.ack()`` when it is done. With ``group`` the members of that name share
        the events by key, and ``name`` is this member's. ``start`` counts the first time only. Each event
        comes at least once: again after a crash, a lost connection or a ``nak``, and says its ``attempt``.
        """
        feed = typed.consumption(name, patterns, start, group=group, max_inflight=max_inflight)

        def convert(entry: Entry) -> BlockingConsumed | None:
            if isinstance(entry, Mark):
                typed.delivered(entry)
                return None
            report = partial(self._report, feed, entry.cursor or "")
            return BlockingConsumed(**typed.facts_of(entry), report=report)

        return self._follow(feed, convert)

    def _report(self, feed: Consumption, cursor: str, **refusal: Any) -> None:
        self._ask(typed.report(feed, cursor, self._time(None), **refusal))
