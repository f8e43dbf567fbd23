"""Which plugin an event is missing for: one that would handle its namespace, but does not run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial

from ksi_common.messages import spec_of
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.handlers import event_of
from ksi_daemon.marks import HANDLER
from ksi_daemon.plugins import declared
from ksi_daemon.router import Absent
from ksi_daemon.supervisor import attempt


def absent_by(catalog: Catalog) -> Callable[[str], Absent | None]:
    """Make what finds the plugin that an event that nobody handles is missing for; None: there is none."""

    @cache  # whoever misspells a name does so time and again
    def events(plugin: str) -> Sequence[str]:
        return _events(catalog.plugins[plugin])

    def absent(event: str) -> Absent | None:
        namespace = event.partition(":")[0]
        is_served = any(route.spec.namespace == namespace for route in catalog.routes.values())
        for plugin in _off(catalog.plugins):
            # Where others serve the namespace, what is like an event may be a misspelt one of theirs.
            near = not is_served and any(name.startswith(f"{namespace}:") for name in events(plugin.name))
            if plugin.name == namespace or event in events(plugin.name) or near:
                why = plugin.status + (f": {plugin.error}" if plugin.error else "")
                mend = f"ksi plugin enable {plugin.name}" if plugin.status == "disabled" else "mend that"
                return Absent(plugin.name, why, mend)
        return None

    return absent


def _off(plugins: Mapping[str, Plugin]) -> Iterator[Plugin]:
    return (plugin for plugin in plugins.values() if plugin.status != "loaded")


def _events(plugin: Plugin) -> Sequence[str]:
    """Name those that it would handle, as far as its module can be looked at."""
    functions = attempt(partial(declared, plugin.module, HANDLER))
    if isinstance(functions, BaseException):
        return ()
    events = [attempt(partial(event_of, function)) for function in functions]
    return [spec_of(event).name for event in events if isinstance(event, type)]
