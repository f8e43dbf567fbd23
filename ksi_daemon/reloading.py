"""Settings that can change while the daemon runs: read again at SIGHUP, and where config:reload asks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog

from ksi_common.errors import KSIError
from ksi_common.events.config import Component, Reloaded
from ksi_common.paths import Paths
from ksi_daemon.logs import set_level
from ksi_daemon.settings import Settings, load_settings

log = structlog.get_logger()


class Reloading:
    """Read the settings again, and put in force what can be."""

    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._paths = paths
        self._in_force = dict(_flat(settings.model_dump()))
        self.live: dict[str, Callable[[Any], None]] = {"log.level": set_level}
        """What puts a setting in force, by its dotted name; the others need a start."""

    def reload(self, component: Component = "all") -> Reloaded:
        """Put in force what can be; raise KSIError, with nothing changed, where a file is wrong."""
        wanted = dict(_flat(load_settings(self._paths).model_dump()))
        names = [name for name in wanted.keys() | self._in_force.keys() if component in {"all", _table(name)}]
        differing = sorted(name for name in names if wanted.get(name) != self._in_force.get(name))
        changed = [name for name in differing if name in self.live]
        for name in changed:
            self.live[name](wanted[name])
            self._in_force[name] = wanted[name]
        needs_restart = [name for name in differing if name not in self.live]
        log.info("settings.reloaded", changed=changed, needs_restart=needs_restart)
        return Reloaded(
            component=component,
            reloaded_components=sorted({_table(name) for name in changed}),
            changed=changed,
            needs_restart=needs_restart,
        )

    def hang_up(self) -> None:
        """Do at SIGHUP what can be done: a terminal's end is one, too, and ends nothing here."""
        try:
            self.reload()
        except KSIError as error:
            log.warning("settings.refused", error=error.message, hint=error.hint)


def _table(name: str) -> str:
    return name.partition(".")[0]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
