"""What an author declares of tables that a plugin keeps itself: how they are made of the log again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from ksi_common.messages import Notification
from ksi_common.records import record
from ksi_daemon.catalog import Plugin
from ksi_daemon.database import Connection
from ksi_daemon.marks import REBUILDER, UPCASTER
from ksi_daemon.plugins import declared
from ksi_daemon.projections.declaration import ProjectionError, Rows, classes_of, parameters_of
from ksi_daemon.upcasting import Upcasting, upcasting_by

E = TypeVar("E")
T = TypeVar("T")

_TABLES: Final = "__ksi_rebuilder_tables__"


class Tables:
    """The tables of a plugin while an event is applied to them again. Valid only until that returns."""

    __slots__ = ("_connection", "time_us")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.time_us = 0
        """When the event was told, in microseconds since 1970."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        """Run one statement; give its cursor."""
        return self._connection.execute(sql, parameters)


@record(eq=False)
class Rebuilder:
    """How some tables of a plugin are made of the log again."""

    plugin: str
    tables: Sequence[str]
    classes: Mapping[str, type[Notification]]
    """Of the events that it takes, by each of their names."""
    apply: Callable[[Any, Any], None]
    takes_rows: bool
    """It takes the Rows of its one table, rather than Tables."""

    def on(self, connection: Connection) -> tuple[Callable[[Any], None], Tables]:
        """Bind ``apply`` to a connection; the Tables given are told the time before each event."""
        tables = Tables(connection)
        first = Rows(tables, self.tables[0]) if self.takes_rows else tables

        def apply(event: Any) -> None:
            self.apply(first, event)

        return apply, tables


def rebuilder(*tables: str) -> Callable[[Callable[[T, E], None]], Callable[[T, E], None]]:
    """Say how ``tables``, which the plugin keeps itself, are made of the log again.

    ``apply(rows: Rows, event)`` makes one table, ``apply(tables: Tables, event)`` any number. The event is
    annotated with the class of a Notification, or several (``Changed | Removed``). It is run where the log is
    replayed into a sandbox or imported, never on the live tables. Afterwards they must be what they were,
    byte for byte: `ksi replay` compares. Retention keeps the events that it takes, until a snapshot of the
    tables stands for them.
    """

    def mark(apply: Callable[[T, E], None]) -> Callable[[T, E], None]:
        setattr(apply, REBUILDER, True)
        setattr(apply, _TABLES, tables)
        return apply

    return mark


def rebuilder_of(function: Callable[..., Any], plugin: str) -> Rebuilder:
    """Read what a ``@rebuilder`` declares; raise ProjectionError."""
    tables: Sequence[str] = getattr(function, _TABLES)
    name = ", ".join(tables) or function.__qualname__
    first, second = parameters_of(function, name)
    classes = classes_of(second, name)
    if not classes:
        raise ProjectionError(f"the rebuilder of {name} takes told events by their classes")
    if not tables or first not in {Rows, Tables} or (first is Rows and len(tables) > 1):
        raise ProjectionError(f"the rebuilder of {name} takes the Rows of one table, or Tables")
    return Rebuilder(plugin, tables, classes, function, first is Rows)


def declared_by(plugins: Iterable[Plugin]) -> tuple[Sequence[Rebuilder], Upcasting]:
    """Find what plugins declare, and what brings their older events up to date."""
    modules = [(plugin.name, plugin.module) for plugin in plugins]
    rebuilders = [
        rebuilder_of(made, name) for name, module in modules for made in declared(module, REBUILDER)
    ]
    return rebuilders, upcasting_by(made for _, module in modules for made in declared(module, UPCASTER))
