"""What plugins do wrong while they run: it is named, counted, and stopped where it harms the others."""

import asyncio
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import structlog

from ksi_common.envelope import Caller, EventEnvelope
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.watchdog import Place, place_of, waiting_at

log = structlog.get_logger()

QUARANTINE_S: Final = 5.0
"""A plugin that holds the loop for longer is switched off."""
STUCK_S: Final = 1.0
"""A handler that goes on for this long after it was cancelled does not let itself be stopped."""
SURVEY_S: Final = 10.0
MANY_TASKS: Final = 1000
"""Tasks of one plugin, above which it is told to leak them."""
GROWTH_BYTES: Final = 256 * 1024 * 1024
"""Of memory above the least that was seen, at which the daemon is said to grow; doubled each time."""

Quarantine = Callable[[str, str], None]
"""Switch a plugin off, with the reason."""


class Guard:
    """Hears of trouble; ``quarantine`` ends it."""

    def __init__(self, catalog: Catalog, quarantine: Quarantine) -> None:
        self._catalog = catalog
        self._quarantine = quarantine
        self._least = _memory()
        self._growth = GROWTH_BYTES
        self._leaking: set[str] = set()

    def owner(self, file: str) -> str | None:
        """Give the plugin of strangers that a file belongs to."""
        plugin = self._catalog.owner_of(file)
        return None if plugin is None or plugin.builtin else plugin.name

    def held(self, place: Place, held_s: float) -> None:
        """Name who holds the loop, while it is held. Called in the watchdog's thread."""
        log.warning(
            "loop.held",
            plugin=place.plugin,
            where=place.where,
            function=place.function,
            code=place.code,
            held_s=round(held_s, 2),
            hint="await what waits, or write a plain function: it gets a thread",
        )

    def resumed(self, place: Place, held_s: float) -> None:
        """Hear that the loop turns again, and count."""
        log.warning("loop.resumed", plugin=place.plugin, where=place.where, held_s=round(held_s, 2))
        plugin = self._catalog.plugins.get(place.plugin or "")
        if plugin is None:
            return
        plugin.held += 1
        plugin.held_s = max(plugin.held_s, round(held_s, 2))
        if held_s >= QUARANTINE_S and plugin.status == "loaded":
            self._quarantine(plugin.name, f"it held the loop for {held_s:.1f} s at {place.where}")

    def slow(self, envelope: EventEnvelope, took_s: float) -> None:
        """Name a handler that took long."""
        plugin = self._plugin_of(envelope.event)
        if plugin is not None:
            plugin.slow += 1
            log.warning("handler.slow", plugin=plugin.name, handled=envelope.event, took_s=round(took_s, 2))

    def late(self, caller: Caller) -> None:
        """Name a handler whose time is over, and look a second later whether it has stopped."""
        task: asyncio.Task[object] | None = getattr(caller, "task", None)
        envelope: EventEnvelope | None = getattr(caller, "envelope", None)
        if task is None or envelope is None:
            return
        plugin = self._plugin_of(envelope.event)
        name = "unknown" if plugin is None else plugin.name
        log.warning("handler.late", plugin=name, handled=envelope.event, where=self._where(task))
        asyncio.get_running_loop().call_later(STUCK_S, self._look_again, task, envelope.event, plugin)

    def _look_again(self, task: "asyncio.Task[object]", event: str, plugin: Plugin | None) -> None:
        if task.done():
            return
        name = "unknown" if plugin is None else plugin.name
        log.error("handler.stuck", plugin=name, handled=event, where=self._where(task))
        if plugin is not None:
            plugin.stuck += 1
            task.add_done_callback(lambda _: setattr(plugin, "stuck", plugin.stuck - 1))

    async def survey(self) -> None:
        """Look from time to time for what leaks."""
        while True:
            await asyncio.sleep(SURVEY_S)
            self.look(asyncio.all_tasks())

    def look(self, tasks: Iterable["asyncio.Task[object]"]) -> None:
        """Warn of plugins with many tasks, of open files and of memory."""
        for name, count in self.tasks_of(tasks).items():
            self._catalog.plugins[name].tasks = count
            if count > MANY_TASKS and name not in self._leaking:
                self._leaking.add(name)
                log.error("plugin.leaks_tasks", plugin=name, tasks=count)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            files, memory = len(os.listdir("/proc/self/fd")), _memory()  # noqa: PTH208
        except OSError:  # none is left, not even to look
            files, memory = limit, self._least
        if files > 0.8 * limit:
            log.error("daemon.files_low", files=files, limit=limit, busiest=self._busiest())
        self._least = min(self._least, memory)
        if memory - self._least > self._growth:
            self._growth *= 2
            log.error("daemon.grows", bytes=memory, least=self._least, busiest=self._busiest())

    def tasks_of(self, tasks: Iterable["asyncio.Task[object]"]) -> Counter[str]:
        """Count the tasks of plugins of strangers, by where they stand."""
        counted: Counter[str] = Counter()
        for task in tasks:
            code = getattr(task.get_coro(), "cr_code", None)
            name = None if code is None else self.owner(code.co_filename)
            if name is not None:
                counted[name] += 1
        return counted

    def _busiest(self) -> str | None:
        """Guess: the plugin of strangers with the most trouble of its own."""
        strangers = [plugin for plugin in self._catalog.plugins.values() if not plugin.builtin]
        worst = max(strangers, key=lambda plugin: (plugin.tasks, plugin.failures), default=None)
        return None if worst is None else worst.name

    def _plugin_of(self, event: str) -> Plugin | None:
        route = self._catalog.routes.get(event)
        return None if route is None else self._catalog.plugins.get(route.plugin)

    def _where(self, task: "asyncio.Task[object]") -> str | None:
        frames = waiting_at(task)
        owned = [frame for frame in frames if self.owner(frame.f_code.co_filename) is not None]
        return next((place_of(frame, None).where for frame in (*owned, *frames)), None)


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
