"""``plugin:serve``: a client becomes the handler of events; and what is known of who needs whom."""

from typing import Literal

from pydantic import Field, JsonValue

from ksi_common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from ksi_common.events.types import EventName, Name
from ksi_common.messages import Message, Notification, Request, Stream


class ServedEvent(Message):
    """An event that a client handles."""

    event: EventName = Field(description="Its name.")
    kind: Literal["request", "stream"] = Field(
        "request", description="One reply, or any number of items and an end."
    )
    summary: str = Field("", max_length=500, description="What it does, for people.")
    safe: bool = Field(default=False, description="It changes nothing, and may be asked again freely.")
    idempotent: bool = Field(default=False, description="Doing it twice is doing it once.")
    schema_: dict[str, JsonValue] | None = Field(
        None,
        alias="schema",
        description="JSON Schema of its data; without it, one that is declared.",
    )
    reply: dict[str, JsonValue] | None = Field(
        None, description="JSON Schema of its reply, or of an item; without it any object."
    )


class Serving(Message):
    """The client is a handler now: what is asked comes as frames of type ``call``."""

    plugin: str
    events: list[str]
    servers: int
    """Clients that serve under this name, this one included."""


class Serve(
    Stream[Serving],
    event="plugin:serve",
    safe=True,
    raises=(AlreadyExists, FailedPrecondition, InvalidArgument, NotFound),
):
    """Handle events, for as long as this stream and the connection last.

    The daemon sends ``{"type":"call","id":"d1","event":"...","data":{...},"timeout_s":30}`` and is answered
    with ``{"type":"reply","id":"d1","data":{...}}``, with any number of ``item`` and an ``end``, or with
    ``error``. ``{"type":"cancel","id":"d1"}`` says that a call is not wanted any more. Several clients may
    serve under one name: calls are spread over them. What one has at work when it ends gets UNAVAILABLE.
    """

    name: Name = Field(description="Of the plugin that this client is.", examples=["weather"])
    version: str = Field("0", max_length=64, description="Of that plugin.")
    events: list[ServedEvent] = Field(
        min_length=1,
        max_length=256,
        description="What it handles.",
        examples=[[{"event": "weather:get", "schema": {"properties": {"city": {"type": "string"}}}}]],
    )
    max_in_flight: int = Field(
        64, ge=1, le=1024, description="Calls at once; more wait in the daemon for their turn."
    )


class Joined(Notification, event="plugin:joined"):
    """A client serves events."""

    plugin: str
    events: list[str]
    servers: int


class Left(Notification, event="plugin:left"):
    """A client serves no longer: it ended its stream, or its connection is gone."""

    plugin: str
    events: list[str]
    servers: int
    """Clients that still serve under this name."""
    unanswered: int
    """Calls that it had at work; they were answered with UNAVAILABLE."""


class Quarantined(Notification, event="plugin:quarantined"):
    """A plugin was switched off while the daemon runs; what it handles is answered with UNAVAILABLE."""

    plugin: str
    reason: str


class PluginNeed(Message):
    """One plugin and what it needs."""

    plugin: str
    status: str
    requires: list[str]
    wants: list[str]
    required_by: list[str]


class Dependencies(Message):
    """Who needs whom, in the order of start."""

    dependencies: list[PluginNeed]


class GetDependencies(Request[Dependencies], event="plugin:dependencies", safe=True, raises=(NotFound,)):
    """Tell what plugins need of each other."""

    plugin: str | None = Field(None, description="Of this one only.", examples=["state"])


class Edge(Message):
    """From one plugin to another."""

    source: str
    target: str
    kind: Literal["requires", "wants", "tells"]
    events: list[str] = Field(default_factory=list)
    """What the source tells and the target hears."""


class Graph(Message):
    """Plugins, and what goes between them."""

    nodes: list[str]
    edges: list[Edge]
    mermaid: str
    """The same as a drawing in Mermaid's words."""


class GetGraph(Request[Graph], event="plugin:graph", safe=True):
    """Draw who needs whom, and who hears what another tells."""


class OrphanedEvents(Message):
    """Events that lead nowhere."""

    orphaned_events: list[str]
    """Subscribed to by a plugin, and told by none that is loaded."""
    unused_events: list[str]
    """Told by a plugin, and subscribed to by none; clients may follow them."""


class GetOrphanedEvents(Request[OrphanedEvents], event="plugin:orphaned_events", safe=True):
    """List events that are heard and never told, and those that are told and heard by no plugin."""


class CommandOfPlugin(Message):
    """A command of ``ksi`` that a plugin gives."""

    name: str
    event: str
    arguments: list[str]
    """Fields that its words fill, in order."""
    required: list[str]
    """Of these, the ones that its event cannot do without."""
    summary: str
    plugin: str


class CommandList(Message):
    """The commands of all plugins."""

    commands: list[CommandOfPlugin]


class ListCommands(Request[CommandList], event="plugin:commands", safe=True):
    """List the commands that plugins give to ``ksi``."""


class Relationship(Message):
    """What one plugin does with events."""

    plugin: str
    handles: list[str]
    tells: list[str]
    hears: list[str]


class Relationships(Message):
    """What each plugin does with events."""

    plugin_count: int
    event_count: int
    relationships: list[Relationship]


class GetRelationships(Request[Relationships], event="plugin:relationships", safe=True):
    """List what each plugin handles, tells and hears."""


class Problem(Message):
    """Something of a plugin that is not as it should be."""

    plugin: str
    problem: str


class Validated(Message):
    """Whether all plugins are well."""

    valid: bool
    problems: list[Problem]


class Validate(Request[Validated], event="plugin:validate", safe=True):
    """Look at all plugins: refused and quarantined ones, wants that are not met, events that lead nowhere."""
