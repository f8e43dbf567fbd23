"""``plugin:serve``, and what is known of plugins among each other; part of the core's plugin."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from ksi_common.bus import Bus
from ksi_common.errors import NotFound
from ksi_common.events.plugin import (
    CommandList,
    CommandOfPlugin,
    Dependencies,
    Edge,
    GetDependencies,
    GetGraph,
    GetOrphanedEvents,
    GetRelationships,
    Graph,
    Joined,
    Left,
    ListCommands,
    OrphanedEvents,
    PluginNeed,
    Problem,
    Relationship,
    Relationships,
    Serve,
    Serving,
    Validate,
    Validated,
)
from ksi_common.messages import public_name
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.children import Tasks
from ksi_daemon.contributions import Command, Commands
from ksi_daemon.plugin import handler
from ksi_daemon.remote import Remotes
from ksi_daemon.remote.server import Line


@handler
async def serve(
    request: Serve, remotes: Remotes, line: Line, bus: Bus, tasks: Tasks
) -> AsyncIterator[Serving]:
    """Take the client in until it ends the stream, or is gone."""
    with remotes.serving(request, line) as (group, server):
        events, name = list(group.declared), request.name
        await bus.notify(Joined(plugin=name, events=events, servers=len(group.servers)))
        yield Serving(plugin=name, events=events, servers=len(group.servers))
        try:
            await server.serve()
        finally:
            tasks.create_task(_tell_left(bus, group.plugin, events))


async def _tell_left(bus: Bus, plugin: Plugin, events: list[str]) -> None:
    # After the block is left, in a task that no connection's end cancels.
    await bus.notify(
        Left(plugin=plugin.name, events=events, servers=plugin.connections, unanswered=plugin.unanswered)
    )


@handler
async def dependencies(request: GetDependencies, catalog: Catalog) -> Dependencies:
    """List who needs whom, in the order of start."""
    if request.plugin is not None and request.plugin not in catalog.plugins:
        raise NotFound(
            f'there is no plugin "{request.plugin}"', hint=f"there are {', '.join(catalog.plugins)}"
        )
    wanted = [plugin for plugin in catalog.plugins.values() if request.plugin in {None, plugin.name}]
    return Dependencies(
        dependencies=[
            PluginNeed(
                plugin=plugin.name,
                status=plugin.status,
                requires=list(plugin.requires),
                wants=list(plugin.wants),
                required_by=[each.name for each in catalog.dependents(plugin.name)],
            )
            for plugin in wanted
        ]
    )


@handler
async def graph(_: GetGraph, catalog: Catalog) -> Graph:
    """Draw plugins, what they need, and what they hear of each other."""
    nodes = [plugin.name for plugin in catalog.plugins.values() if plugin.status == "loaded"]
    edges = list(_edges(catalog, nodes))
    return Graph(nodes=nodes, edges=edges, mermaid=_mermaid(nodes, edges))


@handler
async def orphaned_events(_: GetOrphanedEvents, catalog: Catalog) -> OrphanedEvents:
    """Compare what is told with what is heard."""
    heard = {event for _, event in _heard(catalog)}
    told = set(catalog.notifications)
    return OrphanedEvents(orphaned_events=sorted(heard - told), unused_events=sorted(told - heard))


@handler
async def relationships(_: GetRelationships, catalog: Catalog) -> Relationships:
    """List what each plugin does with events."""
    hears = _heard_by(catalog)
    listed = [
        Relationship(
            plugin=plugin.name,
            handles=list(plugin.handled),
            tells=sorted(plugin.told),
            hears=sorted(hears.get(plugin.name, ())),
        )
        for plugin in catalog.plugins.values()
    ]
    count = len(catalog.routes) + len(catalog.notifications)
    return Relationships(plugin_count=len(listed), event_count=count, relationships=listed)


@handler
async def list_commands(_: ListCommands, commands: Commands, catalog: Catalog) -> CommandList:
    """List what plugins give."""
    return CommandList(
        commands=[
            CommandOfPlugin(
                name=command.name,
                event=command.event,
                arguments=list(command.arguments),
                required=_required(command, catalog),
                summary=command.summary,
                plugin=command.plugin,
            )
            for _, command in sorted(commands.by_name.items())
        ]
    )


def _required(command: Command, catalog: Catalog) -> list[str]:
    route = catalog.routes.get(command.event)
    fields = route.message.model_fields if route is not None else {}
    needed = [public_name(name, info) for name, info in fields.items() if info.is_required()]
    return [argument for argument in command.arguments if argument in needed]


@handler
async def validate(_: Validate, catalog: Catalog) -> Validated:
    """Look at every plugin."""
    problems = [Problem(plugin=name, problem=problem) for name, problem in _problems(catalog)]
    return Validated(valid=not problems, problems=problems)


def _problems(catalog: Catalog) -> Iterator[tuple[str, str]]:
    told = set(catalog.notifications)
    for plugin in catalog.plugins.values():
        if plugin.status in {"refused", "quarantined"}:
            yield plugin.name, f"{plugin.status}: {plugin.error}"
        if plugin.failures:
            yield plugin.name, f"{plugin.failures} errors that were bugs"
    for name, event in _heard(catalog):
        if event not in told:
            yield name, f"hears {event}, which no plugin that is loaded tells"


def _heard(catalog: Catalog) -> Iterator[tuple[str, str]]:
    for plugin in catalog.plugins.values():
        for heard in plugin.subscribed:
            yield plugin.name, heard.event


def _heard_by(catalog: Catalog) -> Mapping[str, set[str]]:
    heard: dict[str, set[str]] = {}
    for name, event in _heard(catalog):
        heard.setdefault(name, set()).add(event)
    return heard


def _edges(catalog: Catalog, nodes: Sequence[str]) -> Iterator[Edge]:
    for name in nodes:
        plugin = catalog.plugins[name]
        yield from (Edge(source=name, target=need, kind="requires") for need in plugin.requires)
        yield from (Edge(source=name, target=need, kind="wants") for need in plugin.wants)
    for listener, events in sorted(_heard_by(catalog).items()):
        tellers = {event: catalog.plugin_telling(event) for event in sorted(events)}
        for teller in sorted(set(tellers.values()) - {listener}):
            told = [event for event, by in tellers.items() if by == teller]
            yield Edge(source=teller, target=listener, kind="tells", events=told)


def _mermaid(nodes: Sequence[str], edges: Sequence[Edge]) -> str:
    lines = ["graph LR", *(f'  {name}["{name}"]' for name in nodes)]
    for edge in edges:
        if edge.kind == "tells":
            lines.append(f'  {edge.source} -- "{", ".join(edge.events)}" --> {edge.target}')
        else:
            lines.append(f"  {edge.source} {'-->' if edge.kind == 'requires' else '-.->'} {edge.target}")
    return "\n".join(lines)
