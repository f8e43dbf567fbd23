"""Who serves what: events of clients in the table of all events, and their calls spread over the clients."""

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    KSIError,
    ResourceExhausted,
    Unavailable,
)
from ksi_common.events.plugin import Serve, ServedEvent
from ksi_common.json_schema import AnyData, defaults_of, event_class
from ksi_common.messages import EventSpec, Message, Request, Stream, spec_of
from ksi_common.strict_json import dumps
from ksi_common.validation import parser
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.database import Database
from ksi_daemon.immediate import endpoint
from ksi_daemon.middleware.errors import ReportedError
from ksi_daemon.outcomes import Begin, Ended, Endpoint, Later, Send, Yielded
from ksi_daemon.remote.call import RemoteCall, RemoteStream
from ksi_daemon.remote.server import Line, RemoteServer
from ksi_daemon.router import Route
from ksi_daemon.several import item_of
from ksi_daemon.table import Table

log = structlog.get_logger()

MAX_WAITING: Final = 1024
"""Calls under one name that wait for a client to be free."""
MAX_GONE: Final = 1024
"""Events whose clients are gone, and which are remembered."""


@dataclass(slots=True, eq=False)
class Group:
    """The clients that serve under one name: they are one plugin."""

    plugin: Plugin
    declared: Mapping[str, ServedEvent]
    routes: list[Route] = field(default_factory=list)
    servers: list[RemoteServer] = field(default_factory=list)
    waiting: deque[RemoteCall] = field(default_factory=deque)
    failed: int = 0

    def start(self, call: RemoteCall) -> None:
        """Give a call to the client that has the least at work; where all are full, let it wait."""
        if self.waiting:
            self._forget_cancelled()
        free = self._free()
        if free is not None and not self.waiting:
            free.ask(call)
        elif len(self.waiting) >= MAX_WAITING and not self._forget_all_cancelled():
            raise ResourceExhausted(
                f"{MAX_WAITING} calls wait for plugin {self.plugin.name}",
                reason="servers_full",
                retry_after_s=0.1,
            )
        else:
            self.waiting.append(call)

    def freed(self) -> None:
        """Give out what waits, as far as there is room."""
        while self.waiting:
            free = self._free()
            if free is None:
                return
            call = self.waiting.popleft()
            if not call.over:
                free.ask(call)

    def abandon(self, reason: KSIError) -> None:
        """Answer what waits: nobody is left."""
        waiting, self.waiting = self.waiting, deque()
        for call in waiting:
            call.finish(None, reason)

    def _free(self) -> RemoteServer | None:
        """Give the client that has the least at work, of those that can take one more."""
        free = [server for server in self.servers if server.can_take()]
        return min(free, key=lambda server: server.at_work, default=None)

    def _forget_cancelled(self) -> None:
        while self.waiting and self.waiting[0].over:
            self.waiting.popleft()

    def _forget_all_cancelled(self) -> bool:
        """Forget those within the queue, too; tell whether that has made room."""
        self.waiting = deque(call for call in self.waiting if not call.over)
        return len(self.waiting) < MAX_WAITING


class Remotes:
    """The clients that serve, by the name of their plugin."""

    def __init__(self, catalog: Catalog, table: Table, database: Database) -> None:
        self._catalog = catalog
        self._table = table
        self._database = database
        self._groups: dict[str, Group] = {}

    def group(self, plugin: str) -> Group | None:
        """Give the clients of a plugin."""
        return self._groups.get(plugin)

    @contextmanager
    def serving(self, request: Serve, line: Line) -> Iterator[tuple[Group, RemoteServer]]:
        """Take a client in for as long as the block lasts; raises where its events cannot be had."""
        if line.serves is not None:
            raise AlreadyExists("this connection serves already: name all events in one plugin:serve")
        group = self._join(request)
        server = RemoteServer(line, request.name, request.max_in_flight, group.freed, self._bug)
        group.servers.append(server)
        group.plugin.connections = len(group.servers)
        line.serves = server.receive
        log.info(
            "plugin.joined", plugin=request.name, servers=len(group.servers), events=list(group.declared)
        )
        group.freed()
        try:
            yield group, server
        finally:
            line.serves = None
            self._leave(group, server)

    def _leave(self, group: Group, server: RemoteServer) -> None:
        group.servers.remove(server)
        group.plugin.connections = len(group.servers)
        if not group.servers:
            self._dissolve(group)
        group.plugin.unanswered = server.lost()
        name = group.plugin.name
        log.info("plugin.left", plugin=name, servers=len(group.servers), unanswered=group.plugin.unanswered)

    def _join(self, request: Serve) -> Group:
        declared = {each.event: each for each in request.events}
        group = self._groups.get(request.name)
        if group is not None:
            if group.declared != declared:
                raise FailedPrecondition(
                    f"plugin {request.name} is served with other events or schemas already",
                    reason="other_schema",
                    hint="clients of one name serve the same; use another name, or stop the others",
                )
            return group
        if request.name in self._catalog.plugins:
            taken = self._catalog.plugins[request.name].origin
            raise AlreadyExists(f"the name {request.name} is taken by {taken}", reason="name_taken")
        plugin = Plugin(request.name, "remote", request.version, remote=True)
        group = Group(plugin, declared)
        group.routes = [self._route(each, group) for each in declared.values()]
        for route in group.routes:
            self._table.check_free(route)
        self._table.add(group.routes)
        self._table.arrange(*declared)
        for name in declared:
            self._catalog.gone.pop(name, None)
        plugin.handled = sorted(declared)
        self._catalog.plugins[request.name] = plugin
        self._groups[request.name] = group
        return group

    def _dissolve(self, group: Group) -> None:
        name = group.plugin.name
        for route in group.routes:
            self._table.remove(route)
            self._table.arrange(route.spec.name)
            self._catalog.gone[route.spec.name] = name
        while len(self._catalog.gone) > MAX_GONE:
            del self._catalog.gone[next(iter(self._catalog.gone))]
        del self._groups[name]
        del self._catalog.plugins[name]
        group.abandon(
            Unavailable(f"no client serves plugin {name} any more", reason="server_gone", plugin=name)
        )

    def _route(self, served: ServedEvent, group: Group) -> Route:
        message, schema = self._class_of(served)
        spec = spec_of(message)
        part = spec if spec.answers == "one" else item_of(spec)
        declared = None if spec.answers == "one" else spec
        defaults = defaults_of(schema)
        name = group.plugin.name
        if spec.kind == "stream":
            return Route(part, message, name, _streaming(part, message, group, defaults), remote=True)
        begin = _beginning(part, message, group, defaults)
        handle = endpoint(begin, part, self._database)
        return Route(part, message, name, handle, begin, declared=declared, remote=True)

    def _class_of(self, served: ServedEvent) -> tuple[type[Message], Mapping[str, Any]]:
        if served.schema_ is None and served.reply is None:
            found = next(self._declared(served.event), None)
            if found is not None:
                return found, {}
        schema = served.schema_ or {}
        made = event_class(
            served.event,
            schema,
            served.reply,
            kind=served.kind,
            summary=served.summary,
            safe=served.safe,
            idempotent=served.idempotent,
        )
        return made, schema

    def _declared(self, event: str) -> Iterator[type[Message]]:
        """Find the class of an event that some plugin declares, whoever handles it."""
        route = self._catalog.routes.get(event)
        if route is not None:
            yield route.message
        modules = [getattr(plugin.module, "__name__", "") for plugin in self._catalog.plugins.values()]
        for name in tuple(sys.modules):
            if name in modules or name.rpartition(".")[0] in modules or name.startswith("ksi_common.events."):
                yield from _asked_for(sys.modules[name], event)

    def _bug(self, plugin: str, event: str, how: str) -> KSIError:
        group = self._groups.get(plugin)
        if group is not None:
            group.failed += 1
        self._catalog.charge(plugin)
        log.error("handler.crashed", handled=event, plugin=plugin, error=how[:500], where="remote")
        return ReportedError(
            f"plugin {plugin} failed in {event}: {how}"[:600],
            hint="it is a client of the daemon: its own output says more",
            plugin=plugin,
        )


def _asked_for(module: object, event: str) -> Iterator[type[Message]]:
    for member in tuple(vars(module).values()):
        if (
            isinstance(member, type)
            and issubclass(member, Request | Stream)
            and hasattr(member, "__ksi__")
            and spec_of(member).name == event
        ):
            yield member


def _beginning(spec: EventSpec, message: type[Message], group: Group, defaults: Mapping[str, Any]) -> Begin:
    render = _rendering(message, defaults)
    to_record = spec.recorded and not spec.safe
    reply = spec.reply or AnyData

    def begin(envelope: EventEnvelope) -> Later:
        data = render(envelope)
        envelope.to_record = to_record
        return RemoteCall(envelope, data, reply, group.start)

    return begin


def _streaming(
    spec: EventSpec, message: type[Message], group: Group, defaults: Mapping[str, Any]
) -> Endpoint:
    render = _rendering(message, defaults)
    kind = spec.reply or AnyData

    async def handle(envelope: EventEnvelope, send: Send) -> None:
        stream = RemoteStream(envelope, render(envelope), kind, group.start)
        stream.open()
        try:
            while (item := await stream.next()) is not None:
                await send(Yielded(item))
        finally:
            stream.cancel()
        await send(Ended())

    return handle


def _rendering(message: type[Message], defaults: Mapping[str, Any]) -> Any:
    """Check the data of an event, and give it as JSON, with what is left out."""
    parse = parser(message)

    def render(envelope: EventEnvelope) -> bytes:
        given = envelope.message
        if given is not None:
            return given.__pydantic_serializer__.to_json(given, by_alias=True)
        envelope.message = parse(envelope.data)
        return dumps({**defaults, **envelope.data} if defaults else envelope.data)

    return render
