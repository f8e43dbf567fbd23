"""Find plugins and load them: one that cannot be loaded is refused with one line, the rest go on."""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import Distribution, entry_points
from importlib.metadata import version as version_of
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import structlog

from ksi_common.errors import InvalidArgument, PermissionDenied
from ksi_common.messages import Message, Notification
from ksi_common.paths import stranger
from ksi_daemon.breadcrumb import Breadcrumb
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.explaining import explain
from ksi_daemon.first_style import adapted, is_first_style
from ksi_daemon.hooks import Relay
from ksi_daemon.needs import NeedError, Needs, arrange, needs_of, nobody_called
from ksi_daemon.supervisor import attempt

log = structlog.get_logger()

GROUP: Final = "ksi"
"""The entry-point group, of built-in plugins and of anybody's."""
CORE: Final = "system"
UNKNOWN: Final = "0"
"""The version of a single file that has no ``__version__``."""

_FILE = re.compile(r"^[a-z][a-z0-9_]*\.py$")

Found = tuple[Plugin, Callable[[], ModuleType]]


class Loader:
    """Import plugins, and register with the relay those that have what they need, in the order of need."""

    def __init__(
        self,
        catalog: Catalog,
        relay: Relay,
        breadcrumb: Breadcrumb,
        *,
        only: Sequence[str] | None = None,
        suspects: Sequence[str] = (),
        disabled: Sequence[str] = (),
    ) -> None:
        self._catalog = catalog
        self._relay = relay
        self._breadcrumb = breadcrumb
        self._only = only
        self._suspects = suspects
        self._disabled = disabled
        self._left_out: list[str] = []

    def load(self, beside: Path | None = None, named: Iterable[Path] = ()) -> None:
        """Load the core, packages by entry point, single files ``beside`` the home, and those of ``named``.

        What stands beside the home must be this user's; a folder that settings name is believed.
        """
        needs: dict[str, Needs] = {}
        own = _files(beside, _own) if beside is not None else ()
        others = (found for folder in dict.fromkeys(named) if folder != beside for found in _files(folder))
        for plugin, load in (*_core(), *_packages(), *own, *others):
            if plugin.builtin or self._only is None or plugin.name in self._only:
                found = self._load_one(plugin, load)
                if found is not None:
                    needs[plugin.name] = found
            else:
                self._left_out.append(plugin.name)
        self._arrange(needs)

    def _arrange(self, needs: Mapping[str, Needs]) -> None:
        plugins = self._catalog.plugins
        order = arrange(needs, plugins, self._missing)
        for name, reason in order.refused.items():
            refuse(plugins[name], NeedError(reason))
        started = {name: plugins[name] for name in order.ordered}
        self._catalog.plugins = {**started, **plugins}
        for name, plugin in started.items():
            if not any(plugins[needed].status == "refused" for needed in plugin.requires):
                self._register(plugin)
            else:
                refuse(plugin, NeedError(f"it needs {', '.join(plugin.requires)}, which cannot run"))
            plugin.wants = [need.name for need in needs[name].wants if need.name in started]

    def _register(self, plugin: Plugin) -> None:
        module = plugin.module
        if is_first_style(module):
            module = adapted(module, plugin.name)
        registered = attempt(lambda: self._relay.register(module, plugin.name))
        if isinstance(registered, BaseException):
            refuse(plugin, registered)

    def _missing(self, name: str) -> str:
        if name in self._left_out:
            return f"{name} is not among those that load_plugins names"
        return nobody_called(name, self._catalog.plugins)

    def _load_one(self, plugin: Plugin, load: Callable[[], ModuleType]) -> Needs | None:
        if plugin.name in self._catalog.plugins:
            self._list_second(plugin, f"name taken by {self._catalog.plugins[plugin.name].origin}")
            return None
        self._catalog.plugins[plugin.name] = plugin
        if plugin.builtin:
            self._breadcrumb.exempt.add(plugin.name)
        if plugin.name in self._disabled and plugin.name != CORE:
            plugin.status, plugin.error = "disabled", "it is switched off in the settings"
            return None
        if plugin.name in self._suspects and not plugin.builtin:
            plugin.status, plugin.error = "quarantined", "it was running when the process crashed"
            log.error("plugin.quarantined", plugin=plugin.name, error=plugin.error)
            return None
        module = attempt(lambda: self._breadcrumb.during(plugin.name, load))
        if isinstance(module, BaseException):
            refuse(plugin, module)
            return None
        plugin.module = module
        if plugin.version == UNKNOWN:
            plugin.version = str(getattr(module, "__version__", UNKNOWN))
        needs = attempt(lambda: needs_of(module))
        if isinstance(needs, BaseException):
            refuse(plugin, needs)
            return None
        plugin.requires = [need.name for need in needs.requires]
        return needs

    def _list_second(self, plugin: Plugin, reason: str) -> None:
        """Refuse a plugin whose name another has; it is listed by where it comes from as well."""
        log.error("plugin.refused", plugin=plugin.name, origin=plugin.origin, error=reason)
        name = f"{plugin.name} ({plugin.origin})"
        self._catalog.plugins[name] = Plugin(
            name, plugin.origin, plugin.version, status="refused", error=reason
        )


def refuse(plugin: Plugin, error: BaseException) -> None:
    """Note that a plugin does not take part, and why; one line."""
    plugin.status = "refused"
    plugin.error = explain(error)
    log.error("plugin.refused", plugin=plugin.name, origin=plugin.origin, error=plugin.error)


def declared(module: object, mark: str) -> list[Callable[..., Any]]:
    """List the functions of a module that carry a mark, in the order written."""
    members = vars(module).values() if module is not None else ()
    return list(dict.fromkeys(member for member in members if getattr(member, mark, False) is True))


def notifications_of(modules: Iterable[str]) -> Iterator[type[Notification]]:
    """Find the notifications that modules declare; those that they import are another's."""
    for name in modules:
        for member in tuple(vars(sys.modules[name]).values()):
            if (
                isinstance(member, type)
                and issubclass(member, Notification)
                and hasattr(member, "__ksi__")
                and member.__module__ == name
            ):
                yield member


def modules_of(module: object, handled: Iterable[type[Message]]) -> list[str]:
    """List where a plugin's events are declared: in its own modules, and where what it handles is."""
    own = str(getattr(module, "__name__", "")).partition(".")[0]
    inside = [name for name in tuple(sys.modules) if name == own or name.startswith(f"{own}.")]
    names = dict.fromkeys((*inside, *(event.__module__ for event in handled)))
    return [name for name in names if name in sys.modules]


def _core() -> Iterator[Found]:
    plugin = Plugin(CORE, "ksi_daemon.core_plugin", version_of(GROUP), builtin=True)
    yield plugin, lambda: importlib.import_module("ksi_daemon.core_plugin")


def _packages() -> Iterator[Found]:
    described = cache(_name_and_version)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        name, version = described(entry.dist) if entry.dist else ("", UNKNOWN)
        yield Plugin(entry.name, entry.value, version, builtin=name == GROUP), entry.load


def _name_and_version(distribution: Distribution) -> tuple[str, str]:
    metadata = distribution.metadata  # a file that is parsed at each look, README and all
    return metadata["Name"], metadata["Version"]


def _files(folder: Path, check: Callable[[Path], None] = lambda _: None) -> Iterator[Found]:
    for path in sorted(folder.glob("*.py")) if folder.is_dir() else ():
        if _FILE.match(path.name):
            yield Plugin(path.stem, str(path)), _file_loader(path, check)
        else:
            yield Plugin(_printable(path.stem), _printable(str(path))), _refuse_name


def _printable(path: str) -> str:
    return path.encode(errors="replace").decode()  # a name of a file may be bytes that are no text


def _refuse_name() -> ModuleType:
    raise InvalidArgument("a plugin's file is named in small letters, digits and underscores")


def _own(file: Path) -> None:
    """Refuse what another user put there: it would run in this user's name."""
    for path in (file.parent, file):
        if (uid := stranger(path)) is not None:
            raise PermissionDenied(f"{path} belongs to another user (uid {uid})", reason="not_owner")


def _file_loader(path: Path, check: Callable[[Path], None]) -> Callable[[], ModuleType]:
    name = f"ksi_file_{path.stem}"

    def load() -> ModuleType:
        check(path)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return load
