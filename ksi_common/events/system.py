"""``system:*`` and ``plugin:*``: what the daemon is, can do and how it fares."""

from typing import Any, Literal

from pydantic import Field, JsonValue

from ksi_common.errors import NotFound
from ksi_common.events.types import EventName
from ksi_common.messages import Message, Notification, Request, Stream

Status = Literal["healthy", "degraded", "unhealthy"]


class Check(Message):
    """One part's health. ``detail``: figures, by name with their units."""

    status: Status
    detail: dict[str, JsonValue] = Field(default_factory=dict)


class Checks(Message):
    """Every part's health."""

    database: Check
    disk_space: Check
    message_queue: Check
    plugins: Check
    providers: Check


class Healthy(Message):
    """The daemon answers; ``status`` is that of its worst part."""

    status: Status
    version: str
    pid: int
    uptime_s: float
    active_connections: int
    checks: Checks


class Health(Request[Healthy], event="system:health", safe=True):
    """Tell how the daemon fares; the checks are at most one second old."""


class Parameter(Message):
    """A field of an event."""

    type: str
    required: bool
    default: JsonValue = None
    description: str = ""
    allowed_values: list[JsonValue] | None = None
    """All that it may be, null apart; null: it may be others."""


class EventHelp(Message):
    """What there is to know about an event."""

    event: str
    namespace: str
    kind: Literal["request", "stream", "notification", "unrouted"]
    summary: str
    description: str
    plugin: str
    version: int
    safe: bool
    idempotent: bool
    parameters: dict[str, Parameter]
    reply: dict[str, JsonValue] | None
    """JSON Schema of the reply, or of an item of a stream."""
    schema_: dict[str, JsonValue] = Field(alias="schema")
    """JSON Schema of the data."""
    errors: list[str]
    """Codes that the handler itself answers with."""
    examples: list[dict[str, JsonValue]]
    """Lines to send, as they are."""
    answers: Literal["one", "all", "race"] = "one"
    """Of its handlers: the only one, all of them, or the first that can."""
    remote: bool = False
    """A client of the daemon handles it."""
    deprecated: str | None = None
    """It is removed in the next major version; what to do in its place."""


class Discovered(Message):
    """Every event that is handled now, and nothing else."""

    namespaces: list[str]
    events: dict[str, list[EventHelp]]
    """By namespace, in order."""
    notifications: dict[str, list[EventHelp]]
    """What is told, by namespace: to be subscribed to, not sent."""
    total_events: int
    format: int = 1
    """Of this document; it grows within a number."""
    ksi: str = ""
    """The version of the daemon."""


class Discover(Request[Discovered], event="system:discover", safe=True):
    """List every event that can be sent, and every one that can be followed."""

    namespace: str | None = Field(None, description="Of this namespace only.", examples=["state"])


class Help(Request[EventHelp], event="system:help", safe=True, raises=(NotFound,)):
    """Explain one event."""

    event: EventName = Field(description="Its name.", examples=["state:set"])


class Info(Message):
    """Facts that do not change while the daemon runs."""

    version: str
    wire_version: int
    python: str
    sqlite: str
    pid: int
    node: str
    started: str
    paths: dict[str, str]
    limits: dict[str, int | float]
    plugins: dict[str, str]
    """Versions by name."""
    log: dict[str, Any]


class GetInfo(Request[Info], event="system:info", safe=True):
    """Tell versions, paths and limits."""


class ShuttingDown(Message):
    """The daemon takes no new work, finishes what runs, and exits."""

    status: Literal["shutting_down"] = "shutting_down"
    grace_s: float


class Shutdown(Request[ShuttingDown], event="system:shutdown", idempotent=True):
    """Drain and stop the daemon."""

    grace_s: float | None = Field(
        None, ge=0, le=3600, description="Seconds for running work; default: the setting."
    )


class Started(Notification, event="system:started"):
    """The daemon serves."""

    version: str
    pid: int
    recovered: bool
    """The run before this one ended without saying so."""


class TailLost(Notification, event="system:tail_lost"):
    """The log ended earlier than it had: acknowledged events are gone, as the disk did not keep them.

    Positions from ``first_missing`` on are given anew, under another log id; a cursor from there gets a gap.
    """

    first_missing: int
    missing: int
    """At least so many."""
    former_log_id: str


class Stopping(Notification, event="system:stopping"):
    """The daemon drains."""

    reason: str
    grace_s: float


class PluginSummary(Message):
    """A plugin, loaded or refused."""

    name: str
    version: str
    status: Literal["loaded", "refused", "quarantined", "disabled"]
    origin: str
    events: int
    error: str | None = None
    failures: int = 0
    """Errors that were bugs, since the start."""
    remote: bool = False
    """It is one or more clients of the daemon."""
    connections: int = 0
    """Of a remote one: how many clients serve it."""


class PluginList(Message):
    """Every plugin that was found."""

    plugins: list[PluginSummary]
    count: int


class ListPlugins(Request[PluginList], event="plugin:list", safe=True):
    """List plugins, the refused ones too, with the reason."""


class PluginFigures(Message):
    """What a plugin did since the start."""

    handled: int = 0
    failed: int = 0
    """Of these, answered with an error."""
    seconds: float = 0.0
    """That its handlers took, waiting included."""
    slow: int = 0
    """Requests that took longer than ``limits.slow_s``."""
    held: int = 0
    """Times that it held the loop, so that nobody else was served."""
    held_s: float = 0.0
    """The longest of them, in seconds."""
    stuck: int = 0
    """Handlers at work that were cancelled and do not let themselves be stopped."""
    tasks: int = 0
    """Tasks that it has; looked at every ten seconds."""


class PluginDetails(PluginSummary):
    """What a plugin contributes."""

    handlers: list[str]
    subscribers: list[str]
    services: list[str]
    hooks: list[str]
    middleware: list[str]
    told: list[str] = Field(default_factory=list)
    """Notifications that it declares."""
    figures: PluginFigures = PluginFigures.model_construct()
    requires: list[str] = Field(default_factory=list)
    """Plugins that it does not run without."""
    wants: list[str] = Field(default_factory=list)
    """Plugins that start before it, where they are there."""
    pipelines: dict[str, list[str]] = Field(default_factory=dict)
    """By event that it handles: the layers around the handler, outermost first; plugins' with their stage."""


class InspectPlugin(Request[PluginDetails], event="plugin:inspect", safe=True, raises=(NotFound,)):
    """Tell what a plugin contributes."""

    plugin_name: str = Field(description="Its name.", examples=["state"])


class Traced(Message):
    """Something that a plugin did."""

    kind: Literal["began", "answered", "told"]
    """``began`` is the first one: from there on nothing is missed."""
    event: str
    data: dict[str, JsonValue]
    """What was asked, or told; only its size where that is above 4 KiB."""
    time: str
    code: str | None = None
    """What was answered with: OK, or the code of an error."""
    took_ms: float | None = None
    correlation_id: str
    missed: int = 0
    """How many before this one are not shown, because they came faster than they were read."""


class TracePlugin(Stream[Traced], event="plugin:trace", safe=True, raises=(NotFound,)):
    """Follow what a plugin answers and tells, requests that change nothing included."""

    plugin_name: str = Field(description="Its name.", examples=["state"])


class Hook(Message):
    """A hook and who implements it."""

    name: str
    summary: str
    parameters: list[str]
    plugins: list[str]


class Hooks(Message):
    """Every hook."""

    hooks: list[Hook]
    count: int


class ListHooks(Request[Hooks], event="plugin:hooks", safe=True):
    """List the hooks that plugins may implement."""
