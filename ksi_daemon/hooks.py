"""The relay: the only module that calls pluggy's hooks.

pluggy calls are synchronous: over async implementations ``firstresult`` would return the first coroutine
even if that resolves to None, and a raise would leak the others un-awaited. So the relay takes the
implementations from pluggy, in its order, and awaits them itself.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from ksi_common.envelope import EventEnvelope
from ksi_daemon import hookspecs
from ksi_daemon.outcomes import Middleware
from ksi_daemon.services import Service

PROJECT = "ksi"


@dataclass(frozen=True, slots=True)
class HookInfo:
    """A hook and the plugins that implement it, in the order they are called."""

    name: str
    summary: str
    parameters: Sequence[str]
    plugins: Sequence[str]


class Relay:
    """Register modules, ask them what they declare, and await what they do."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def register(self, module: object, name: str) -> None:
        """Take a plugin in; raise PluginValidationError where a hook's arguments are not as specified."""
        self._manager.register(module, name=name)
        for caller in self._manager.get_hookcallers(module) or ():
            if caller.spec is None and caller.name.startswith("ksi_"):
                self._manager.unregister(name=name)
                raise pluggy.PluginValidationError(module, f"there is no hook {caller.name}")

    def unregister(self, name: str) -> None:
        """Let a plugin go."""
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)

    def handlers(self, name: str) -> Sequence[Callable[..., Any]]:
        """Give the handlers that a plugin makes at load."""
        return [handler for several in self._ask("ksi_handlers", name) for handler in several]

    def services(self, name: str) -> Sequence[Service[Any]]:
        """Give the services that a plugin offers."""
        return [service for several in self._ask("ksi_services", name) for service in several]

    def middleware(self, name: str) -> Sequence[Middleware]:
        """Give the layers of a plugin."""
        return [layer for several in self._ask("ksi_middleware", name) for layer in several]

    def migrations(self, name: str) -> Mapping[int, str]:
        """Give the scripts of a plugin's tables."""
        merged: dict[int, str] = {}
        for scripts in self._ask("ksi_migrations", name):
            merged.update(scripts)
        return merged

    async def startup(self, name: str, **arguments: Any) -> None:
        """Await a plugin's preparation."""
        await self._await_one("ksi_startup", name, arguments)

    def serves(self, name: str) -> bool:
        """Tell whether a plugin has something to run."""
        return bool(self._implementations("ksi_serve", name))

    async def serve(self, name: str, **arguments: Any) -> None:
        """Run a plugin's long-running part."""
        await self._await_one("ksi_serve", name, arguments)

    async def shutdown(self, name: str) -> None:
        """Await a plugin's end."""
        await self._await_one("ksi_shutdown", name, {})

    @property
    def handles_unrouted(self) -> bool:
        """Tell whether any plugin wants events that no class declares."""
        return bool(self._manager.hook.ksi_handle_event.get_hookimpls())

    async def handle_event(self, envelope: EventEnvelope) -> Any:
        """Ask plugins for an event that no class declares; the first answer that is not None wins."""
        arguments = {"event": envelope.event, "data": envelope.data, "context": envelope}
        for implementation in reversed(self._manager.hook.ksi_handle_event.get_hookimpls()):
            answer = await _call(implementation, arguments)
            if answer is not None:
                return answer
        return None

    def observers(self, name: str) -> Sequence[Callable[[EventEnvelope, float, str], None]]:
        """Give a plugin's observers, to be compiled into the path of an event."""
        return [_observer(impl) for impl in self._implementations("ksi_event_handled", name)]

    def hooks(self) -> Sequence[HookInfo]:
        """Describe every hook."""
        infos = []
        for name, spec in sorted(vars(hookspecs).items()):
            if not name.startswith("ksi_"):
                continue
            caller = getattr(self._manager.hook, name)
            plugins = [impl.plugin_name for impl in reversed(caller.get_hookimpls())]
            summary = (inspect.getdoc(spec) or "").partition("\n")[0]
            infos.append(HookInfo(name, summary, list(inspect.signature(spec).parameters), plugins))
        return infos

    def hooks_of(self, name: str) -> Sequence[str]:
        """List the hooks that a plugin implements."""
        return [info.name for info in self.hooks() if name in info.plugins]

    def _ask(self, hook: str, name: str) -> Sequence[Any]:
        return [impl.function() or () for impl in self._implementations(hook, name)]

    def _implementations(self, hook: str, name: str) -> Sequence[Any]:
        caller = getattr(self._manager.hook, hook)
        return [impl for impl in reversed(caller.get_hookimpls()) if impl.plugin_name == name]

    async def _await_one(self, hook: str, name: str, arguments: Mapping[str, Any]) -> None:
        for implementation in self._implementations(hook, name):
            await _call(implementation, arguments)


async def _call(implementation: Any, arguments: Mapping[str, Any]) -> Any:
    answer = implementation.function(**{name: arguments[name] for name in implementation.argnames})
    return await answer if inspect.isawaitable(answer) else answer


def _observer(implementation: Any) -> Callable[[EventEnvelope, float, str], None]:
    names = set(implementation.argnames)

    def observe(envelope: EventEnvelope, took_s: float, code: str) -> None:
        arguments = {"envelope": envelope, "took_s": took_s, "code": code}
        implementation.function(**{name: value for name, value in arguments.items() if name in names})

    return observe
