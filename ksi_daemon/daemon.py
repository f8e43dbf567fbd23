"""The composition root: the parts, the order in which they come to life, and the way back."""

import asyncio
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import structlog

from ksi_common.bus import Bus
from ksi_common.clock import Clock, SystemClock
from ksi_common.envelope import EventEnvelope
from ksi_common.errors import KSIError
from ksi_common.events.plugin import Quarantined
from ksi_common.events.system import Started, Stopping
from ksi_common.events.timer import Failed as TimerFailed
from ksi_common.paths import Paths
from ksi_daemon import blob_files
from ksi_daemon.absence import absent_by
from ksi_daemon.assembly import Assembly
from ksi_daemon.blobs import Blobs, FileBlobs
from ksi_daemon.breadcrumb import Breadcrumb
from ksi_daemon.bus import LocalBus, tell_or_log
from ksi_daemon.catalog import Catalog
from ksi_daemon.children import Children, Tasks
from ksi_daemon.connection_limits import ConnectionLimits
from ksi_daemon.consumers import Consumers
from ksi_daemon.contributions import Commands, HttpRoutes
from ksi_daemon.database import Database
from ksi_daemon.dead_letters import REFERRED, DatabaseDeadLetters, DeadLetters
from ksi_daemon.draining import drain
from ksi_daemon.durable_listener import DurableListener
from ksi_daemon.eventlog import EventLog
from ksi_daemon.gates import Gates
from ksi_daemon.guard import Guard
from ksi_daemon.handlers import Compiler
from ksi_daemon.health import Health, HealthChecks
from ksi_daemon.hooks import Relay
from ksi_daemon.hub import Hub
from ksi_daemon.keys.forgetting import KeyForgetting
from ksi_daemon.leases import DatabaseLeases, Leases
from ksi_daemon.lifecycle import Lifecycle, Stop
from ksi_daemon.listeners import Listener
from ksi_daemon.middleware import compose
from ksi_daemon.middleware.correlation import correlation
from ksi_daemon.middleware.deadline import Deadline
from ksi_daemon.middleware.direct import Direct
from ksi_daemon.middleware.errors import Errors
from ksi_daemon.middleware.idempotency import Idempotency
from ksi_daemon.middleware.observation import Observation
from ksi_daemon.middleware.only_reading import only_reading
from ksi_daemon.middleware.permissions import permissions
from ksi_daemon.outcomes import Endpoint, Middleware
from ksi_daemon.plugin_settings import is_enabled, own_table
from ksi_daemon.plugins import GROUP, Loader
from ksi_daemon.presence import Presence
from ksi_daemon.processes import Processes
from ksi_daemon.projections import Aggregates, Projections
from ksi_daemon.referrers import Referrers
from ksi_daemon.reloading import Reloading
from ksi_daemon.remote import Remotes
from ksi_daemon.replay import Replays
from ksi_daemon.replay.sandboxes import Sandboxes
from ksi_daemon.retention import Retention
from ksi_daemon.router import Router
from ksi_daemon.services import Services
from ksi_daemon.settings import Settings
from ksi_daemon.subscriptions import Subscriptions
from ksi_daemon.supervisor import MAX_FAILURES, supervise
from ksi_daemon.tail import tell_lost_tail
from ksi_daemon.threads import Threads
from ksi_daemon.timers import DatabaseTimers, Timers
from ksi_daemon.tracing import Tracing
from ksi_daemon.transports.unix import UnixServer
from ksi_daemon.upcasting import Upcasting
from ksi_daemon.verification import Verifier
from ksi_daemon.watchdog import Watchdog

log = structlog.get_logger()

RESERVED_FILES: Final = 128
"""Files that connections leave to the database, the log and child processes."""
READABLE: Final = (blob_files.FOLDER, "logs/responses")
"""Folders below the home whose files a reference may name: blobs, and answers of completions."""


class Daemon:
    """Everything of one home. ``serve`` runs it from start to stop; the home's lock must be held.

    ``sandbox``: it was made of the log of another one. It answers what is safe, and does nothing else.
    """

    database_class = Database
    """Another one is for tests: one that ends where it is told to."""

    def __init__(
        self, paths: Paths, settings: Settings, *, clock: Clock | None = None, sandbox: bool = False
    ) -> None:
        self.paths = paths
        self.sandbox = sandbox
        self._given = settings
        self._disabled = [name for name, table in settings.plugins.items() if not is_enabled(table)]
        tables = {name: own_table(table) for name, table in settings.plugins.items()}
        self.settings = settings.model_copy(update={"plugins": tables})
        self.clock: Clock = clock or SystemClock()
        self.catalog = Catalog()
        self.breadcrumb = Breadcrumb(paths.breadcrumb)
        self.relay = Relay(self.breadcrumb)
        self.assembly = Assembly(self.catalog, self.relay, self.breadcrumb)
        self.reloading = Reloading(paths, settings)

    def load(self) -> None:
        """Import the plugins. May be called before ``serve``, to see what that would say."""
        only = self.settings.load_plugins
        names = [name.strip() for name in only.split(",")] if only is not None else None
        suspects = os.environ.get("KSI_CRASHED_PLUGIN", "").split(",")
        Loader(
            self.catalog, self.relay, self.breadcrumb, only=names, suspects=suspects, disabled=self._disabled
        ).load(self.paths.plugins, self.settings.plugins_dir)

    async def serve(self, *, recovered: bool = False, ready: Callable[["Daemon"], None]) -> Stop:
        """Come to life, call ``ready``, serve until stopped, drain; give why it stopped.

        Raises what forces the end: a disk that does not sync, a part that cannot be done without.
        """
        loop = asyncio.get_running_loop()
        self.lifecycle = Lifecycle(
            version(GROUP), self.clock.monotonic(), self.clock.time_us(), loop.create_future()
        )
        self.hub = Hub(loop.call_soon)
        async with AsyncExitStack() as stack:
            stack.enter_context(self.breadcrumb)
            self.tasks = self.relay.tasks = await stack.enter_async_context(Children())
            await self._open_database(stack)
            await self._assemble(stack)
            if not self.sandbox:
                await self._start_children()
            server = await stack.enter_async_context(self._server())
            self.lifecycle.connections = lambda: len(server.connections)
            gates = await stack.enter_async_context(Gates(self.relay, server.gate))
            stack.enter_context(Watchdog(self.guard.owner, self.guard.held, self.guard.resumed))
            self.tasks.create_task(Presence(self.paths.socket).watch(self._unreachable))
            if not self.sandbox:
                for plugin, why in (await gates.open(self.assembly.loaded)).items():
                    self._switch_off(plugin, f"its transport cannot be opened: {why}")
                await self._announce(recovered=recovered)
            ready(self)
            stop = await self.lifecycle.stopping
            await gates.close()
            await self._drain(server, stop)
        return stop

    async def _announce(self, *, recovered: bool) -> None:
        await self.bus.notify(Started(version=self.lifecycle.version, pid=os.getpid(), recovered=recovered))
        await tell_lost_tail(self.database)

    async def _open_database(self, stack: AsyncExitStack) -> None:
        self.database = await stack.enter_async_context(
            self.database_class(
                self.paths.database,
                backups=self.paths.backups,
                clock=self.clock,
                published=self.hub.publish,
                failed=self.lifecycle.fail,
            )
        )
        self.hub.log_id = self.database.log_id
        self.hub.head = self.database.head
        self.eventlog = EventLog(self.database)
        self.subscriptions = Subscriptions(
            self.hub, self.eventlog, heartbeat_s=self.settings.limits.heartbeat_s
        )

    async def _assemble(self, stack: AsyncExitStack) -> None:
        if not self.catalog.plugins:
            self.load()
        self.assembly.migrate(self.database)
        self.database.start()
        # Left after the services, which may have children to see to their end.
        processes = await stack.enter_async_context(Processes(self.paths.run))
        self.services = await stack.enter_async_context(Services())
        self.bus = LocalBus(
            lambda: self.dispatch,
            database=self.database,
            hub=self.hub,
            subscriptions=self.subscriptions,
            clock=self.clock,
            tasks=self.tasks,
        )
        self._offer_core()
        self.assembly.read_settings(self.settings, self.services)
        await self._offer_resources(processes)
        self.guard = Guard(self.catalog, self._switch_off)
        self.observation = Observation(
            log_requests=self.settings.log.requests,
            observers=self.assembly.observers,
            slow_s=self.settings.limits.slow_s,
            slow=self.guard.slow,
        )
        self.services.offer(Observation, self.observation)
        await self.assembly.open_services(self.services)
        self.assembly.compile(Compiler(self.services, Threads(), self.database))
        self.reloading.live["log.requests"] = self.observation.log_requests
        self.idempotency = Idempotency(self.database, self.clock)
        self._compose()
        if not self.sandbox:
            await self.assembly.start(bus=self.bus, services=self.services)
        self.sandboxes.plugins = [plugin.name for plugin in self.assembly.loaded]
        self.sandboxes.needed = {name for each in self.assembly.rebuilders for name in each.classes}
        self.projections.take(self.assembly.projections)
        self.eventlog.upcast = Upcasting(self.catalog.notifications, self.assembly.upcasters)
        self._compose()  # without the layers of plugins that could not start

    def _offer_core(self) -> None:
        offer = self.services.offer
        offer(Bus, self.bus)  # type: ignore[type-abstract]  # an interface is its own key
        offer(LocalBus, self.bus)
        offer(Clock, self.clock)  # type: ignore[type-abstract]
        offer(Catalog, self.catalog)
        offer(Database, self.database)
        offer(EventLog, self.eventlog)
        offer(Hub, self.hub)
        offer(Lifecycle, self.lifecycle)
        offer(Paths, self.paths)
        self.projections = Projections(self.database, self.eventlog, self.hub, self.clock, self.catalog)
        offer(Projections, self.projections)
        offer(Aggregates, Aggregates(self.database, self.eventlog))
        offer(Relay, self.relay)
        offer(HttpRoutes, self.assembly.http)
        offer(Commands, self.assembly.commands)
        offer(Remotes, Remotes(self.catalog, self.assembly.table, self.database))
        offer(Reloading, self.reloading)
        offer(Services, self.services)
        offer(Settings, self.settings)
        offer(Subscriptions, self.subscriptions)
        offer(Tracing, Tracing(self.catalog, self.hub, self.clock, self.assembly.observers))
        offer(Tasks, self.tasks)  # type: ignore[type-abstract]
        health = Health(
            self.database, self.subscriptions, self.catalog, self.projections, self.settings, self.clock
        )
        offer(Health, health)
        offer(HealthChecks, health)  # type: ignore[type-abstract]

    async def _offer_resources(self, processes: Processes) -> None:
        letters = DatabaseDeadLetters(self.database, self.clock)
        self.timers = DatabaseTimers(
            self.database, self.bus, self.clock, message_class=self.catalog.message_class, letters=letters
        )
        self.consumers = Consumers(
            self.database, self.subscriptions, letters, self.clock, self.tasks,
            stopping=self.lifecycle.stopping.done,
        )  # fmt: skip
        blobs = FileBlobs(self.paths.home, readable=READABLE)
        await blobs.prepare()
        if processes.reaped:
            log.warning("process.reaped", processes=[reaped.pid for reaped in processes.reaped])
        offer = self.services.offer
        offer(Timers, self.timers)  # type: ignore[type-abstract]  # an interface is its own key
        offer(Leases, DatabaseLeases(self.database, self.clock))  # type: ignore[type-abstract]
        offer(Blobs, blobs)  # type: ignore[type-abstract]
        self.sandboxes = Sandboxes(self.database, processes, self.paths, self._given, self.tasks)
        await self.sandboxes.clear()
        referrers = Referrers(self.database)
        referrers.add("dead_letters", REFERRED)
        offer(Referrers, referrers)
        self.retention = Retention(
            self.database, referrers, self.clock, self.settings.retention, self.sandboxes
        )
        offer(Retention, self.retention)
        offer(Verifier, Verifier(self.database, blobs, referrers))
        offer(Processes, processes)
        offer(
            Replays,
            Replays(self.assembly, self.services, self.database, self.eventlog, self.hub, self.sandboxes),
        )
        offer(Consumers, self.consumers)
        offer(DatabaseDeadLetters, letters)
        offer(DeadLetters, letters)  # type: ignore[type-abstract]
        self.catalog.declare(TimerFailed)

    def _compose(self) -> None:
        known, strict = self.catalog, self.settings.strict
        errors = Errors(known.blame, strict=strict, culprit=known.charge_file, owner_of=known.owner_of)
        deadline = Deadline(self.settings.limits.handler_s, late=self.guard.late)
        self.assembly.table.complete(self.database, self._explain)
        self.assembly.table.arrange()
        self.dispatch = self._chain(errors, deadline)
        self.direct = None if self.sandbox else Direct(errors, self.observation, deadline, self.database)

    def _explain(self, envelope: EventEnvelope, error: BaseException, plugin: str) -> KSIError:
        """Give the error of one of several handlers, which is that plugin's own."""
        charged = Errors(partial(self._charge, plugin), strict=self.settings.strict)
        return charged.answer(envelope, error)

    def _chain(self, errors: Errors, deadline: Deadline) -> Endpoint:
        layers: Sequence[Middleware] = (
            correlation,
            errors,
            self.observation,
            deadline,
            permissions,
            *((only_reading,) if self.sandbox else ()),
            self.idempotency,
        )
        catalog, around = self.catalog, self.assembly.table.unrouted
        router = Router(catalog.routes, self._unrouted, around, catalog.gone, absent_by(catalog))
        return compose(layers, router)

    async def _unrouted(self, envelope: EventEnvelope) -> Mapping[str, Any] | None:
        if not self.relay.handles_unrouted:
            return None
        envelope.to_record = True
        reply = await self.relay.handle_event(envelope)
        if reply is not None and not envelope.recorded:
            await self.database.record(envelope, reply)
        return reply

    async def _start_children(self) -> None:
        for subscriber in self.assembly.subscribers:
            blame = partial(self._charge, subscriber.plugin)
            errors = Errors(blame, strict=self.settings.strict)
            listener: Listener | DurableListener
            if subscriber.durable is None:
                listener = Listener(subscriber, self.subscriptions, self.tasks, errors)
            else:
                listener = DurableListener(subscriber, subscriber.durable, self.consumers, self.tasks, errors)
            task = self.tasks.create_task(supervise(f"{subscriber.plugin}.{subscriber.name}", listener.run))
            self.assembly.listening.setdefault(subscriber.plugin, []).append(task)
        self.tasks.create_task(supervise("survey", self.guard.survey))
        self.tasks.create_task(supervise("retention", self.retention.serve))
        self.tasks.create_task(supervise("timers", self.timers.serve))
        forgetting = KeyForgetting(self.database, self.clock, keep_s=self.settings.limits.idempotency_s)
        self.tasks.create_task(supervise("keys", forgetting.serve))
        for follower in self.projections.all:
            name = f"projection {follower.declaration.name}"
            self.tasks.create_task(supervise(name, follower.run, quarantine=follower.fail))
        for plugin in self.assembly.loaded:
            if self.relay.serves(plugin.name):
                self.tasks.create_task(
                    supervise(
                        plugin.name,
                        lambda name=plugin.name: self.relay.serve(name, bus=self.bus, services=self.services),  # type: ignore[misc]
                        quarantine=None if plugin.builtin else self._quarantine,
                    )
                )

    def _charge(self, plugin: str, event: str) -> str:
        del event  # what a subscriber raises is its own plugin's doing, whoever tells the event
        return self.catalog.charge(plugin)

    def _quarantine(self, name: str, error: BaseException) -> None:
        self._switch_off(name, f"its ksi_serve failed {MAX_FAILURES} times: {error!r}")

    def _switch_off(self, name: str, reason: str) -> None:
        """Let nothing of a plugin be called any more, and tell."""
        self.assembly.switch_off(name, reason)
        self.tasks.create_task(tell_or_log(self.bus, Quarantined(plugin=name, reason=reason)))

    def _server(self) -> UnixServer:
        limits = self.settings.limits
        return UnixServer(
            self.paths.socket,
            dispatch=self.dispatch,
            direct=self.direct,
            routes=self.catalog.routes,
            clock=self.clock,
            limits=ConnectionLimits(
                in_flight=limits.in_flight,
                streams=limits.streams,
                partial_line_s=limits.partial_line_s,
                unwritable_s=limits.unwritable_s,
            ),
            max_connections=min(limits.connections, open_files() - RESERVED_FILES),
            crashed=self.lifecycle.fail,
        )

    def _unreachable(self) -> None:
        if not self.lifecycle.stopping.done():
            log.error("daemon.unreachable", socket=str(self.paths.socket), hint="it was removed; start again")
            self.lifecycle.stop("socket_removed", self.settings.limits.drain_s)

    async def _drain(self, server: UnixServer, stop: Stop) -> None:
        log.info("daemon.stopping", reason=stop.reason, grace_s=stop.grace_s)
        if not self.sandbox:
            await tell_or_log(self.bus, Stopping(reason=stop.reason, grace_s=stop.grace_s))
        await drain(server, self.assembly.loaded, self.relay, self.services, stop.grace_s)
        self.tasks.cancel()


def open_files() -> int:
    """Give how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
