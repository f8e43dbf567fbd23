"""``system:*``, ``plugin:*`` and ``config:*``: handled by the daemon itself, in the way of any plugin."""

import asyncio
import os
import platform
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing

from ksi_common.async_db import sqlite_version
from ksi_common.clock import Clock, format_time
from ksi_common.errors import NotFound
from ksi_common.events.config import Reload, Reloaded
from ksi_common.events.system import (
    Checks,
    Discover,
    Discovered,
    EventHelp,
    GetInfo,
    Health,
    Healthy,
    Help,
    Hook,
    Hooks,
    Info,
    InspectPlugin,
    ListHooks,
    ListPlugins,
    PluginDetails,
    PluginFigures,
    PluginList,
    PluginSummary,
    Shutdown,
    ShuttingDown,
    Traced,
    TracePlugin,
)
from ksi_common.guessing import guess
from ksi_common.paths import Paths
from ksi_common.schema import describe
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.eventlog import EventLog
from ksi_daemon.health import Health as HealthMonitor
from ksi_daemon.hooks import Relay
from ksi_daemon.lifecycle import Lifecycle
from ksi_daemon.middleware.observation import Observation
from ksi_daemon.plugin import handler
from ksi_daemon.plugin_handlers import (
    dependencies,
    graph,
    list_commands,
    orphaned_events,
    relationships,
    serve,
    validate,
)
from ksi_daemon.reloading import Reloading
from ksi_daemon.settings import Settings
from ksi_daemon.subscriptions import Subscriptions
from ksi_daemon.tracing import Tracing

WIRE_VERSION = 1

__all__ = ["dependencies", "graph", "list_commands", "orphaned_events", "relationships", "serve", "validate"]


@handler
def health(
    _: Health, monitor: HealthMonitor, lifecycle: Lifecycle, clock: Clock
) -> Healthy | Awaitable[Healthy]:
    """Answer from checks that are at most a second old."""
    checks = monitor.fresh
    return (
        _checked(monitor, lifecycle, clock) if checks is None else _healthy(checks, monitor, lifecycle, clock)
    )


async def _checked(monitor: HealthMonitor, lifecycle: Lifecycle, clock: Clock) -> Healthy:
    return _healthy(await monitor.checks(), monitor, lifecycle, clock)


def _healthy(checks: Checks, monitor: HealthMonitor, lifecycle: Lifecycle, clock: Clock) -> Healthy:
    return monitor.summary(
        checks, lifecycle, round(clock.monotonic() - lifecycle.started, 1), lifecycle.connections()
    )


@handler
async def discover(request: Discover, catalog: Catalog, lifecycle: Lifecycle) -> Discovered:
    """List what is in the table, and nothing else; others have their turn between two events."""
    events: dict[str, list[EventHelp]] = {}
    for namespace, routes in catalog.by_namespace(request.namespace).items():
        events[namespace] = []
        for route in routes:
            events[namespace].append(describe(route.message, route.plugin, remote=route.remote))
            await asyncio.sleep(0)
    told: dict[str, list[EventHelp]] = defaultdict(list)
    for name, notification in sorted(catalog.notifications.items()):
        namespace = name.partition(":")[0]
        if request.namespace in {None, namespace}:
            told[namespace].append(describe(notification, catalog.plugin_telling(name)))
            await asyncio.sleep(0)
    return Discovered(
        namespaces=sorted(events),
        events=events,
        notifications=dict(told),
        total_events=sum(map(len, events.values())),
        ksi=lifecycle.version,
    )


@handler
async def explain(request: Help, catalog: Catalog) -> EventHelp:
    """Describe one event, asked or told."""
    route = catalog.routes.get(request.event)
    if route is not None:
        return describe(route.message, route.plugin, remote=route.remote)
    notification = catalog.notifications.get(request.event)
    if notification is not None:
        return describe(notification, catalog.plugin_telling(request.event))
    near = catalog.nearest(request.event)
    raise NotFound(
        f'no plugin handles or tells "{request.event}"',
        reason="unknown_event",
        nearest=near,
        hint=guess(near, "system:discover lists what there is"),
    )


@handler
async def info(
    _: GetInfo,
    lifecycle: Lifecycle,
    paths: Paths,
    settings: Settings,
    catalog: Catalog,
    log: EventLog,
    subscriptions: Subscriptions,
) -> Info:
    """Tell versions, paths and limits."""
    return Info(
        version=lifecycle.version,
        wire_version=WIRE_VERSION,
        python=platform.python_version(),
        sqlite=sqlite_version(),
        pid=lifecycle.pid,
        node=os.uname().nodename,
        started=format_time(lifecycle.started_us),
        paths={
            "home": str(paths.home),
            "socket": str(paths.socket),
            "database": str(paths.database),
            "log": str(paths.log),
            "plugins": str(paths.plugins),
            "config": str(paths.config),
        },
        limits=settings.limits.model_dump(),
        plugins={plugin.name: plugin.version for plugin in catalog.plugins.values()},
        log={"id": log.log_id, "head": subscriptions.hub.head, "cursor": log.cursor(subscriptions.hub.head)},
    )


@handler
async def shutdown(request: Shutdown, lifecycle: Lifecycle, settings: Settings) -> ShuttingDown:
    """Answer first; the drain begins when the answer is on its way."""
    grace_s = settings.limits.drain_s if request.grace_s is None else request.grace_s
    lifecycle.stop("system:shutdown", grace_s)
    return ShuttingDown(grace_s=grace_s)


@handler
async def reload(request: Reload, reloading: Reloading) -> Reloaded:
    """Put changed settings in force."""
    return reloading.reload(request.component)


@handler
async def list_plugins(_: ListPlugins, catalog: Catalog) -> PluginList:
    """List plugins, the refused ones too."""
    plugins = [PluginSummary(**_summary(plugin)) for _, plugin in sorted(catalog.plugins.items())]
    return PluginList(plugins=plugins, count=len(plugins))


@handler
async def inspect_plugin(
    request: InspectPlugin, catalog: Catalog, relay: Relay, observation: Observation
) -> PluginDetails:
    """Tell what one plugin contributes."""
    plugin = _find(request.plugin_name, catalog)
    return PluginDetails(
        **_summary(plugin),
        handlers=plugin.handled,
        subscribers=list(map(str, plugin.subscribed)),
        services=plugin.services,
        middleware=plugin.middleware,
        hooks=list(relay.hooks_of(plugin.name)),
        told=plugin.told,
        figures=_figures(plugin, observation),
        requires=list(plugin.requires),
        wants=list(plugin.wants),
        pipelines={
            name: list(catalog.routes[name].pipeline) for name in plugin.handled if name in catalog.routes
        },
    )


@handler
async def trace_plugin(request: TracePlugin, catalog: Catalog, tracing: Tracing) -> AsyncIterator[Traced]:
    """Give what a plugin does, until nobody reads on."""
    items = tracing.follow(_find(request.plugin_name, catalog))
    async with aclosing(items):
        async for traced in items:
            yield traced


@handler
async def list_hooks(_: ListHooks, relay: Relay) -> Hooks:
    """List hooks and who implements them."""
    hooks = [
        Hook(
            name=hook.name, summary=hook.summary, parameters=list(hook.parameters), plugins=list(hook.plugins)
        )
        for hook in relay.hooks()
    ]
    return Hooks(hooks=hooks, count=len(hooks))


def _find(name: str, catalog: Catalog) -> Plugin:
    plugin = catalog.plugins.get(name)
    if plugin is None:
        known = ", ".join(sorted(catalog.plugins))
        raise NotFound(f'there is no plugin "{name}"', hint=f"there are {known}")
    return plugin


def _figures(plugin: Plugin, observation: Observation) -> PluginFigures:
    known = observation.statistics
    handled = [known[event] for event in plugin.handled if event in known]
    return PluginFigures(
        handled=sum(each.handled for each in handled),
        failed=sum(each.failed for each in handled),
        seconds=round(sum(each.seconds for each in handled), 6),
        slow=plugin.slow,
        held=plugin.held,
        held_s=plugin.held_s,
        stuck=plugin.stuck,
        tasks=plugin.tasks,
    )


def _summary(plugin: Plugin) -> dict[str, object]:
    return {
        "name": plugin.name,
        "version": plugin.version,
        "status": plugin.status,
        "origin": plugin.origin,
        "events": len(plugin.handled),
        "error": plugin.error,
        "failures": plugin.failures,
        "remote": plugin.remote,
        "connections": plugin.connections,
    }
