"""The table that events are dispatched by: made of what plugins contribute."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import AlreadyExists, Unavailable
from ksi_daemon.catalog import Catalog
from ksi_daemon.database import Database
from ksi_daemon.layers import Layer, in_order, only_for
from ksi_daemon.middleware import CORE_LAYERS, compose
from ksi_daemon.outcomes import Endpoint, Middleware, Send
from ksi_daemon.router import Route
from ksi_daemon.several import Explain, Several


@dataclass(slots=True, eq=False)
class Table:
    """Who handles what, behind which layers. What is dispatched by is ``catalog.routes``."""

    catalog: Catalog
    layers: list[Layer] = field(default_factory=list)
    _members: dict[str, list[Route]] = field(default_factory=dict)
    _off: dict[str, str] = field(default_factory=dict)
    _database: Database | None = None
    _explain: Explain | None = None

    def complete(self, database: Database, explain: Explain) -> None:
        """Take what requests of several answers are made with."""
        self._database = database
        self._explain = explain

    def check_free(self, route: Route) -> None:
        """Raise AlreadyExists where an event is taken, and is not one that several answer."""
        for taken in self._members.get(route.spec.name, ()):
            name = route.spec.name
            if route.declared is None or taken.declared is None:
                raise AlreadyExists(f"{name} is handled by plugin {taken.plugin} already")
            if taken.plugin == route.plugin:
                raise AlreadyExists(f"{name} is handled by plugin {taken.plugin} already; each answers once")
            if taken.message is not route.message:
                raise AlreadyExists(
                    f"{name} is declared by another class in plugin {taken.plugin}: import that"
                )

    def add(self, routes: Sequence[Route]) -> None:
        """Take handlers in; ``arrange`` makes it so."""
        for route in routes:
            self._members.setdefault(route.spec.name, []).append(route)

    def remove(self, route: Route) -> None:
        """Take a handler out; ``arrange`` makes it so."""
        self._members[route.spec.name].remove(route)

    def withdraw(self, plugin: str) -> None:
        """Take everything of a plugin out; ``arrange`` makes it so."""
        for routes in self._members.values():
            routes[:] = [route for route in routes if route.plugin != plugin]
        self.layers[:] = [each for each in self.layers if each.plugin != plugin]

    def switch_off(self, plugin: str, reason: str) -> None:
        """Let nothing of a plugin be called any more: who asks for it is told why."""
        self._off[plugin] = reason
        self.arrange()

    def arrange(self, *events: str) -> None:
        """Make the routes of some events, or of all."""
        for event in events or tuple(self._members):
            members = self._members[event]
            if members:
                self.catalog.routes[event] = self._layered(self._joined(event, members))
            else:
                del self._members[event]
                self.catalog.routes.pop(event, None)

    def unrouted(self, ask: Endpoint) -> Endpoint:
        """Give the way of what no class declares: through the layers that are for it."""
        return compose([_limited(each) for each in self._active()], ask)

    def _joined(self, event: str, members: Sequence[Route]) -> Route:
        running = [route for route in members if route.plugin not in self._off]
        first = members[0]
        if not running:
            return replace(
                first, handle=_switched_off(event, first.plugin, self._off[first.plugin]), begin=None
            )
        spec = first.declared or first.spec
        if spec.answers == "one":
            return running[0]
        assert self._database is not None, "it is completed before it is arranged"
        assert self._explain is not None
        return Several(running, spec, first.message, self._database, self._explain).route()

    def _layered(self, route: Route) -> Route:
        layers = [each for each in self._active() if each.is_for(route.spec.name)]
        pipeline = [*CORE_LAYERS, *(f"{each.stage}: {each.name}" for each in layers)]
        if not layers:
            return replace(route, pipeline=pipeline)
        handle = compose([each.call for each in layers], route.handle)
        return replace(route, handle=handle, begin=None, pipeline=pipeline)

    def _active(self) -> Sequence[Layer]:
        return in_order([each for each in self.layers if each.plugin not in self._off])


def _limited(each: Layer) -> Middleware:
    return each.call if "*" in each.events else only_for(each)


def _switched_off(event: str, plugin: str, reason: str) -> Endpoint:
    async def handle(envelope: EventEnvelope, send: Send) -> None:
        del envelope, send
        raise Unavailable(
            f"{event} is not handled: plugin {plugin} is switched off, {reason}",
            reason="quarantined",
            plugin=plugin,
            hint="mend it and restart; ksi call plugin:inspect says more",
        )

    return handle
