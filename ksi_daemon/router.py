"""The table of events, compiled at load: an event costs one look-up, whatever number of plugins there is."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import KSIError, NotFound, Unavailable
from ksi_common.guessing import guess, nearest
from ksi_common.messages import EventSpec, Message
from ksi_common.records import record
from ksi_daemon.outcomes import Begin, Endpoint, Replied, Send

Unrouted = Callable[[EventEnvelope], Awaitable[Mapping[str, Any] | None]]
"""Ask plugins' ``ksi_handle_event``; None: nobody wants it."""


@record(eq=False)
class Route:
    """Where an event goes."""

    spec: EventSpec
    message: type[Message]
    plugin: str
    handle: Endpoint
    begin: Begin | None = None
    """What a handler that does not wait does at once; ``handle`` does it, too, and all that follows."""
    declared: EventSpec | None = None
    """Of one of several handlers: the event as its callers know it; ``spec`` is that of its own part."""
    plugins: Sequence[str] = ()
    """Who answers, where there are several."""
    pipeline: Sequence[str] = ()
    """The layers that it goes through, from the outside in."""
    remote: bool = False
    """A client of the daemon handles it."""


@record
class Absent:
    """A plugin that does not run. ``why``: ``refused: what is wrong``; ``mend``: what to do about it."""

    plugin: str
    why: str
    mend: str


class Router:
    """Give each event to its handler. ``routes`` may change: each event is looked up anew."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        unrouted: Unrouted | None = None,
        around: Callable[[Endpoint], Endpoint] = lambda ask: ask,
        gone: Mapping[str, str] | None = None,
        absent: Callable[[str], Absent | None] = lambda _: None,
    ) -> None:
        """``around``: puts the layers of plugins around what no class declares.

        ``gone``: events that clients served, and the plugin that they were, while none is connected.
        ``absent``: finds the plugin that would handle an event, and does not run.
        """
        self.routes = routes
        self._unrouted = unrouted
        self._around = around
        self._gone = {} if gone is None else gone
        self._absent = absent

    async def __call__(self, envelope: EventEnvelope, send: Send) -> None:
        """Hand over; raise NotFound, with the nearest names, where nobody takes the event."""
        route = self.routes.get(envelope.event)
        if route is not None:
            await route.handle(envelope, send)
        else:
            await self._around(self._ask)(envelope, send)

    async def _ask(self, envelope: EventEnvelope, send: Send) -> None:
        reply = None if self._unrouted is None else await self._unrouted(envelope)
        if reply is None:
            raise self._unknown(envelope.event)
        await send(Replied(reply))

    def _unknown(self, event: str) -> KSIError:
        if event in self._gone:
            plugin = self._gone[event]
            return Unavailable(
                f"{event} is served by plugin {plugin}, of which no client is connected",
                reason="server_gone",
                plugin=plugin,
                hint="start it again",
            )
        absent = self._absent(event)
        if absent is not None:
            return NotFound(
                f"no plugin handles {event[:128]}: plugin {absent.plugin} is {absent.why}",
                hint=f"{absent.mend} and restart the daemon; plugin:list shows every plugin",
                reason="plugin_off",
                plugin=absent.plugin,
            )
        exposed = [name for name, route in self.routes.items() if route.spec.expose]
        near = nearest(event, exposed, limit=3)
        shown = event if len(event) <= 128 else event[:125] + "..."
        hint = guess(near, "system:discover lists what there is")
        return NotFound(f'no plugin handles "{shown}"', hint=hint, reason="unknown_event", nearest=near)
