"""From loaded plugins to one table: what of a plugin does not fit refuses that plugin, and no other."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from ksi_common.errors import AlreadyExists
from ksi_common.messages import Notification, spec_of
from ksi_common.records import record
from ksi_daemon.breadcrumb import Breadcrumb
from ksi_daemon.catalog import Catalog, Heard, Plugin
from ksi_daemon.contributions import Commands, HttpRoutes
from ksi_daemon.database import Database
from ksi_daemon.deprecations import Deprecations
from ksi_daemon.handlers import Compiler
from ksi_daemon.hooks import Relay
from ksi_daemon.immediate import HandlerError, endpoint
from ksi_daemon.layers import Layer, answering, name_of
from ksi_daemon.marks import DURABLE, HANDLER, PROJECTION, REBUILDER, SUBSCRIBER, UPCASTER, Durable
from ksi_daemon.middleware.observation import Observer
from ksi_daemon.needs import NeedError, nobody_called
from ksi_daemon.plugin_settings import read_table
from ksi_daemon.plugins import declared, modules_of, notifications_of, refuse
from ksi_daemon.projections.declaration import Declaration, declaration_of
from ksi_daemon.projections.rebuilders import Rebuilder, rebuilder_of
from ksi_daemon.router import Route
from ksi_daemon.services import Service, Services
from ksi_daemon.settings import Settings
from ksi_daemon.supervisor import attempt, attempt_async
from ksi_daemon.table import Table
from ksi_daemon.threads import Threads
from ksi_daemon.upcasting import Data, UpcasterError, missing_upcasters, upcaster_of

log = structlog.get_logger()


@record
class Subscriber:
    """A function of a plugin that hears a notification."""

    name: str
    plugin: str
    event: type[Notification]
    call: Callable[..., Awaitable[Any]]
    function: Callable[..., Any]
    """As its plugin declares it."""
    durable: Durable | None = None
    """How it wants them, if it has a cursor of its own."""


@dataclass(slots=True)
class Assembly:
    """Take plugins through the stages of loading, in order; what a stage refuses is not in the next."""

    catalog: Catalog
    relay: Relay
    breadcrumb: Breadcrumb
    observers: list[Observer] = field(default_factory=list)
    subscribers: list[Subscriber] = field(default_factory=list)
    projections: list[Declaration] = field(default_factory=list)
    rebuilders: list[Rebuilder] = field(default_factory=list)
    upcasters: dict[tuple[str, int], Callable[[Data], Data]] = field(default_factory=dict)
    """By the name of the event, and the version that they take."""
    http: HttpRoutes = field(default_factory=HttpRoutes)
    commands: Commands = field(default_factory=Commands)
    listening: dict[str, list[asyncio.Task[None]]] = field(default_factory=dict)
    """What gives the subscribers of each plugin their events."""
    table: Table = field(init=False)
    deprecations: Deprecations = field(default_factory=Deprecations)
    _observers: dict[str, Sequence[Observer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table = Table(self.catalog)

    @property
    def loaded(self) -> Sequence[Plugin]:
        """Give the plugins that take part, in the order loaded."""
        return [plugin for plugin in self.catalog.plugins.values() if plugin.status == "loaded"]

    def read_settings(self, settings: Settings, services: Services) -> None:
        """Read every plugin's table and offer it; a table that is of no plugin is warned of."""
        for plugin in self.loaded:
            read = partial(self._read_settings, plugin, settings, services)
            self._refuse_if_failed(plugin, attempt(read))
        for name in settings.plugins:
            if name not in self.catalog.plugins:
                log.warning(
                    "settings.of_no_plugin", plugin=name, hint=nobody_called(name, self.catalog.plugins)
                )

    def _read_settings(self, plugin: Plugin, settings: Settings, services: Services) -> None:
        model = self.relay.settings(plugin.name)
        if model is None and plugin.builtin:
            return  # it has none, or reads its table itself
        table = settings.plugins.get(plugin.name, {})
        made = read_table(plugin.name, table, model, origin=settings.origin)
        if made is not None:
            services.offer(type(made), made, plugin=plugin.name)

    def migrate(self, database: Database) -> None:
        """Bring every plugin's tables to their newest schema."""
        for plugin in self.loaded:
            scripts = attempt(lambda plugin=plugin: self.relay.migrations(plugin.name))  # type: ignore[misc]
            if not isinstance(scripts, BaseException) and scripts:
                done = attempt(lambda p=plugin, s=scripts: database.migrate(p.name, s))  # type: ignore[misc]
                scripts = done if isinstance(done, BaseException) else {}
            self._refuse_if_failed(plugin, scripts)

    async def open_services(self, services: Services) -> None:
        """Open what plugins offer, in order of need."""
        offered: dict[str, Sequence[Service[Any]]] = {}
        for plugin in self.loaded:
            several = attempt(lambda plugin=plugin: self.relay.services(plugin.name))  # type: ignore[misc]
            if isinstance(several, BaseException):
                self._refuse(plugin, several)
            else:
                offered[plugin.name] = several
                plugin.services = [service.interface.__name__ for service in several]
        for name, error in (await services.open(offered, self.breadcrumb.awaiting)).items():
            self._refuse(self.catalog.plugins[name], error)

    def compile(self, compiler: Compiler) -> None:
        """Make routes, subscribers, layers and observers."""
        for plugin in self.loaded:
            done = attempt(lambda plugin=plugin: self._compile(plugin, compiler))  # type: ignore[misc]
            self._refuse_if_failed(plugin, done)

    async def start(self, **arguments: Any) -> None:
        """Await every plugin's preparation; one that raises is refused, with all that it handles."""
        for plugin in self.loaded:
            done = await attempt_async(lambda p=plugin: self.relay.startup(p.name, **arguments))  # type: ignore[misc]
            self._refuse_if_failed(plugin, done)

    def switch_off(self, name: str, reason: str) -> None:
        """Quarantine a plugin that runs: nothing of it is called again."""
        plugin = self.catalog.plugins[name]
        plugin.status, plugin.error = "quarantined", reason
        self.table.switch_off(name, reason)
        for observer in self._observers.pop(name, ()):
            self.observers.remove(observer)
        for task in self.listening.pop(name, ()):
            task.cancel()
        log.error("plugin.quarantined", plugin=name, error=reason)

    def _compile(self, plugin: Plugin, compiler: Compiler) -> None:
        if not plugin.builtin:
            # Threads of its own: those that it does not give back are no other's.
            around = partial(self.breadcrumb.in_thread, plugin.name)
            compiler = replace(compiler, threads=Threads(around=around))
        made = self.relay.handlers(plugin.name)
        heard = [function for function in made if getattr(function, SUBSCRIBER, False)]
        asked = [function for function in made if function not in heard]
        routes = self._routes(plugin, (*declared(plugin.module, HANDLER), *asked), compiler)
        subscribers = [
            self._subscriber(plugin, function, compiler)
            for function in dict.fromkeys((*declared(plugin.module, SUBSCRIBER), *heard))
        ]
        projections = self._projections(plugin)
        rebuilders = [rebuilder_of(made, plugin.name) for made in declared(plugin.module, REBUILDER)]
        upcasters = _upcasters(plugin, routes)
        http = self.relay.routes(plugin.name)
        for command in self.relay.commands(plugin.name):
            self.commands.add(command, plugin.name)
        layers = [self._marked_layer(plugin, each) for each in self.relay.middleware(plugin.name)]
        self._take_in(plugin, routes, subscribers, layers)
        self.http.all.extend(http)
        self.projections.extend(projections)
        self.rebuilders.extend(rebuilders)
        self.upcasters.update(upcasters)

    def _routes(
        self, plugin: Plugin, functions: Sequence[Callable[..., Any]], compiler: Compiler
    ) -> dict[str, Route]:
        routes: dict[str, Route] = {}
        for function in dict.fromkeys(functions):
            route = self.deprecations.watched(compiler.handler(function, plugin.name))
            if not plugin.builtin:
                route.message.model_rebuild()  # what is wrong with it is said now
                route = self._marked(plugin.name, route, compiler.database)
            self._check_free(route, routes)
            routes[route.spec.name] = route
        return routes

    def _subscriber(self, plugin: Plugin, function: Callable[..., Any], compiler: Compiler) -> Subscriber:
        event, call = compiler.subscriber(function)
        if not plugin.builtin:
            call = self.breadcrumb.around_call(plugin.name, call)
        durable: Durable | None = getattr(function, DURABLE, None)
        if durable is not None and spec_of(event).ephemeral:
            raise HandlerError(
                f"{function.__qualname__} is durable, but {spec_of(event).name} is never stored"
            )
        return Subscriber(function.__qualname__, plugin.name, event, call, function, durable)

    def _take_in(
        self,
        plugin: Plugin,
        routes: dict[str, Route],
        subscribers: Sequence[Subscriber],
        layers: Sequence[Layer],
    ) -> None:
        self.table.add(list(routes.values()))
        self.table.layers.extend(layers)
        self.subscribers.extend(subscribers)
        self._observers[plugin.name] = observers = self.relay.observers(plugin.name)
        self.observers.extend(observers)
        plugin.handled = sorted(routes)
        plugin.subscribed = [
            Heard(subscriber.name, spec_of(subscriber.event).name) for subscriber in subscribers
        ]
        plugin.middleware = [name_of(each.call) for each in layers]
        for notification in _told(plugin, routes):
            if self.catalog.declare(notification):
                plugin.told.append(spec_of(notification).name)

    def _marked(self, plugin: str, route: Route, database: Database) -> Route:
        if route.begin is None:
            return replace(route, handle=self.breadcrumb.around(plugin, route.handle))
        begin = self.breadcrumb.before(plugin, route.begin)
        handle = self.breadcrumb.around(plugin, endpoint(begin, route.spec, database))
        return replace(route, handle=handle, begin=begin)

    def _marked_layer(self, plugin: Plugin, given: Layer) -> Layer:
        if plugin.builtin:
            return given
        call = answering(given, self.breadcrumb.around_call(plugin.name, given.call))
        setattr(call, "__name__", name_of(given.call))  # noqa: B010 -- what people are told it is called
        return replace(given, call=call)

    def _check_free(self, route: Route, own: dict[str, Route]) -> None:
        if route.spec.name in own:
            raise AlreadyExists(f"{route.spec.name} is handled by plugin {route.plugin} already")
        self.table.check_free(route)

    def _projections(self, plugin: Plugin) -> Sequence[Declaration]:
        made: list[Declaration] = []
        for function in declared(plugin.module, PROJECTION):
            declaration = declaration_of(function, plugin.name)
            taken = next((each for each in (*self.projections, *made) if each.name == declaration.name), None)
            if taken is not None:
                raise AlreadyExists(f"projection {taken.name} is declared by plugin {taken.plugin} already")
            made.append(declaration)
        return made

    def _refuse_if_failed(self, plugin: Plugin, outcome: object) -> None:
        if isinstance(outcome, BaseException):
            self._refuse(plugin, outcome)

    def _refuse(self, plugin: Plugin, error: BaseException) -> None:
        refuse(plugin, error)
        for dependent in self.catalog.dependents(plugin.name):
            if dependent.status == "loaded":
                self._refuse(
                    dependent, NeedError(f"it needs {plugin.name}, which cannot run: {plugin.error}")
                )
        self.relay.unregister(plugin.name)
        self.table.withdraw(plugin.name)
        for name in plugin.told:
            self.catalog.withdraw(name)
        plugin.handled, plugin.told, plugin.subscribed = [], [], []
        for observer in self._observers.pop(plugin.name, ()):
            self.observers.remove(observer)
        self.http.all[:] = [route for route in self.http.all if route.plugin != plugin.name]
        for name in [each.name for each in self.commands.by_name.values() if each.plugin == plugin.name]:
            del self.commands.by_name[name]
        self.projections[:] = [each for each in self.projections if each.plugin != plugin.name]
        self.rebuilders[:] = [each for each in self.rebuilders if each.plugin != plugin.name]
        self.subscribers[:] = [heard for heard in self.subscribers if heard.plugin != plugin.name]


def _told(plugin: Plugin, routes: Mapping[str, Route]) -> Iterator[type[Notification]]:
    handled = [route.message for route in routes.values()]
    return notifications_of(modules_of(plugin.module, handled))


def _upcasters(
    plugin: Plugin, routes: Mapping[str, Route]
) -> Mapping[tuple[str, int], Callable[[Data], Data]]:
    made: dict[tuple[str, int], Callable[[Data], Data]] = {}
    for function in declared(plugin.module, UPCASTER):
        event, version = upcaster_of(function)
        key = (spec_of(event).name, version)
        if key in made:
            raise AlreadyExists(f"version {version} of {key[0]} has two upcasters")
        made[key] = function
    missing = missing_upcasters(_told(plugin, routes), made)
    if missing is not None:
        raise UpcasterError(missing)
    return made
