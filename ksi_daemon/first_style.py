"""Plugins in the style of the first KSI: ``ksi_plugin = True``, and the hooks of then.

    ksi_plugin = True

    def ksi_plugin_context(context): ...      # {"emit_event": ..., "config": ...}
    def ksi_startup(config): ...
    def ksi_ready(): ...                      # {"tasks": [{"name": ..., "coroutine": ...}]}, or nothing
    def ksi_handle_event(event_name, data, context): ...
    def ksi_shutdown(): ...

Each may be async, and may be decorated with a marker of pluggy or not. The adapter is an ordinary plugin,
which asks them in the ways of now.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final

from ksi_common.bus import Bus
from ksi_common.envelope import EventEnvelope
from ksi_daemon.bus import LocalBus
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.services import Services
from ksi_daemon.settings import Settings

MARK: Final = "ksi_plugin"


def is_first_style(module: object) -> bool:
    """Tell whether a module says that it is one."""
    return getattr(module, MARK, False) is True


def adapted(module: Any, name: str) -> object:
    """Make a plugin of now of a module of then; what it does not have, the plugin has not."""
    old = _Old(module, name)
    hooks: dict[str, Callable[..., Any]] = {"ksi_startup": old.ksi_startup}
    if hasattr(module, "ksi_ready"):
        hooks["ksi_serve"] = old.ksi_serve
    if hasattr(module, "ksi_handle_event"):
        hooks["ksi_handle_event"] = old.ksi_handle_event
    if hasattr(module, "ksi_shutdown"):
        hooks["ksi_shutdown"] = old.ksi_shutdown
    return SimpleNamespace(**hooks, __name__=module.__name__)


class _Old:
    """The hooks of now, over those of then."""

    def __init__(self, module: Any, name: str) -> None:
        self._module = module
        self._name = name

    @hookimpl
    async def ksi_startup(self, bus: Bus, services: Services) -> None:
        config = services.get(Settings).plugins.get(self._name, {})
        local = services.get(LocalBus)

        async def emit_event(event: str, data: Mapping[str, Any] | None = None, **_: Any) -> Any:
            return await local.ask(event, data or {})

        context = {"config": config, "emit_event": emit_event, "bus": bus}
        await self._ask("ksi_plugin_context", context=context)
        await self._ask("ksi_startup", config=config)

    @hookimpl
    async def ksi_serve(self) -> None:
        ready = await self._ask("ksi_ready")
        tasks = ready.get("tasks", ()) if isinstance(ready, Mapping) else ()
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task["coroutine"], name=task.get("name"))

    @hookimpl
    async def ksi_handle_event(self, event: str, data: Mapping[str, Any], context: EventEnvelope) -> Any:
        known = {
            "correlation_id": context.correlation_id,
            "event_id": context.event_id,
            "client_id": context.actor,
        }
        return await self._ask("ksi_handle_event", event_name=event, data=dict(data), context=known)

    @hookimpl
    async def ksi_shutdown(self) -> None:
        await self._ask("ksi_shutdown")

    async def _ask(self, hook: str, **given: Any) -> Any:
        function = getattr(self._module, hook, None)
        if function is None:
            return None
        wanted = inspect.signature(function).parameters
        answer = function(**{name: value for name, value in given.items() if name in wanted})
        return await answer if inspect.isawaitable(answer) else answer
