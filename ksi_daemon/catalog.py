"""What is loaded: plugins, the events they handle, and the events they tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ksi_common.guessing import nearest
from ksi_common.messages import Message, Notification, spec_of
from ksi_daemon.router import Route

Status = Literal["loaded", "refused", "quarantined", "disabled"]


class Heard(NamedTuple):
    """An event that a plugin hears, and the function that does."""

    function: str
    event: str

    def __str__(self) -> str:
        return f"{self.function}({self.event})"


@dataclass(slots=True, eq=False)
class Plugin:
    """A plugin that was found, and what became of it."""

    name: str
    origin: str
    version: str = "0"
    builtin: bool = False
    """Shipped with the daemon, which does not do without it."""
    remote: bool = False
    """It is one or more clients of the daemon."""
    connections: int = 0
    """Of a remote one: how many clients."""
    unanswered: int = 0
    """Of a remote one: calls that the last client to go had at work."""
    status: Status = "loaded"
    error: str | None = None
    failures: int = 0
    """Errors that were bugs."""
    slow: int = 0
    """Requests that took longer than ``limits.slow_s``."""
    held: int = 0
    """Times that it held the loop, so that nobody else was served."""
    held_s: float = 0.0
    """The longest of them, in seconds."""
    stuck: int = 0
    """Handlers at work that were cancelled and do not let themselves be stopped."""
    tasks: int = 0
    """Tasks that it has, when that was looked at last."""
    module: object = None
    requires: Sequence[str] = ()
    """Plugins that it does not run without."""
    wants: Sequence[str] = ()
    """Plugins that start before it, where they are there."""
    handled: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """Notifications that it declares."""
    subscribed: list[Heard] = field(default_factory=list)
    services: list[str] = field(default_factory=list)
    middleware: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Catalog:
    """Filled while the daemon loads; read-only afterwards, but for what plugins come to."""

    plugins: dict[str, Plugin] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    notifications: dict[str, type[Notification]] = field(default_factory=dict)
    """Declared events by name: only the plugins that declare them tell them."""
    former: dict[str, type[Notification]] = field(default_factory=dict)
    """The same by the names that they once had."""
    gone: dict[str, str] = field(default_factory=dict)
    """Events that clients served, with the plugin that they were, while none does."""

    def message_class(self, event: str) -> type[Message] | None:
        """Find the class of a declared event."""
        route = self.routes.get(event)
        return route.message if route else self.notifications.get(event)

    def declared(self, event: str) -> type[Notification] | None:
        """Find the told event that is, or once was, called so."""
        return self.notifications.get(event) or self.former.get(event)

    def declare(self, notification: type[Notification]) -> bool:
        """Take a told event in, under all its names; give False where its name is taken."""
        spec = spec_of(notification)
        if self.notifications.setdefault(spec.name, notification) is not notification:
            return False
        self.former.update(dict.fromkeys(spec.formerly, notification))
        return True

    def withdraw(self, name: str) -> None:
        """Forget a told event."""
        notification = self.notifications.pop(name)
        for former in spec_of(notification).formerly:
            self.former.pop(former, None)

    def followed(self, patterns: Sequence[str]) -> Sequence[str]:
        """Give what a subscriber to ``patterns`` follows: where one is an old name, the new one, too."""
        found = [self.declared(pattern) for pattern in patterns]
        return list(dict.fromkeys((*patterns, *(spec_of(kind).name for kind in found if kind))))

    def nearest(self, event: str) -> list[str]:
        """Guess which event was meant."""
        return nearest(event, [*self.routes, *self.notifications], limit=3)

    def plugin_telling(self, event: str) -> str:
        """Give the plugin that declares a told event."""
        tellers = (plugin.name for plugin in self.plugins.values() if event in plugin.told)
        return next(tellers, event.partition(":")[0])

    def blame(self, event: str) -> str:
        """Count a bug against the plugin that handles an event, or is called so; give its name."""
        route = self.routes.get(event)
        if route is not None:
            return self.charge(route.plugin)
        return self.charge(event if event in self.plugins else "unknown")

    def charge_file(self, filename: str) -> str | None:
        """Count a bug against the plugin that a file belongs to; give its name, None: it is nobody's."""
        owner = self.owner_of(filename)
        return None if owner is None or owner.builtin else self.charge(owner.name)

    def owner_of(self, filename: str) -> Plugin | None:
        """Give the plugin that a file of code belongs to: its own, or one of the package that it is in."""
        neighbour = None
        for plugin in self.plugins.values():
            file = getattr(plugin.module, "__file__", None)
            if file is None or plugin.name == "system":
                continue
            if filename == file:
                return plugin
            folder = file.rpartition("/")[0]
            if getattr(plugin.module, "__package__", None) and filename.startswith(f"{folder}/"):
                neighbour = neighbour or plugin
        return neighbour

    def charge(self, name: str) -> str:
        """Count a bug against a plugin; give its name."""
        plugin = self.plugins.get(name)
        if plugin is not None:
            plugin.failures += 1
        return name

    def dependents(self, name: str) -> Sequence[Plugin]:
        """Give the plugins that do not run without one."""
        return [plugin for plugin in self.plugins.values() if name in plugin.requires]

    def by_namespace(self, namespace: str | None = None) -> Mapping[str, Sequence[Route]]:
        """Give routes that clients may ask for, in order."""
        found: dict[str, list[Route]] = {}
        for name in sorted(self.routes):
            route = self.routes[name]
            if route.spec.expose and namespace in (None, route.spec.namespace):
                found.setdefault(route.spec.namespace, []).append(route)
        return found
