"""Which plugin an event is missing for: one that would handle its namespace, but does not run."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ksi_common.messages import spec_of
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.handlers import event_of
from ksi_daemon.marks import HANDLER
from ksi_daemon.plugins import declared
from ksi_daemon.router import Absent
from ksi_daemon.supervisor import attempt


def absent_by(catalog: Catalog) -> Callable[[str], Absent | None]:
    """Make what finds the plugin that an event that nobody handles is missing for; None: there is none."""

    def absent(event: str) -> Absent | None:
        namespace = event.partition(":")[0]
        return next(
            (
                Absent(plugin.name, plugin.status + (f": {plugin.error}" if plugin.error else ""))
                for plugin in _off(catalog.plugins)
                if plugin.name == namespace or namespace in _namespaces(plugin)
            ),
            None,
        )

    return absent


def _off(plugins: Mapping[str, Plugin]) -> Iterator[Plugin]:
    return (plugin for plugin in plugins.values() if plugin.status != "loaded")


def _namespaces(plugin: Plugin) -> Iterator[str]:
    """Give those that it would handle, as far as its module got."""
    for function in declared(plugin.module, HANDLER):
        event = attempt(partial(event_of, function))
        if isinstance(event, type):
            yield spec_of(event).namespace
