"""What an author declares: a document or a table, and how an event changes it."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Final, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from ksi_common.bus import Delivered
from ksi_common.envelope import StoredEvent
from ksi_common.errors import FailedPrecondition, InvalidArgument
from ksi_common.messages import Message, Notification, is_event_pattern, spec_of
from ksi_common.records import record
from ksi_daemon.database.trial import check_table
from ksi_daemon.explaining import place_of
from ksi_daemon.marks import PROJECTION

S = TypeVar("S", bound=Message)
E = TypeVar("E")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

Apply = Callable[..., Any]

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_OPTIONS: Final = "__ksi_projection_options__"


class ProjectionError(FailedPrecondition):
    """A projection is declared wrongly; the message says which and how."""


class Executing(Protocol):
    """A transaction of the one writer, or the connection of a database that is made apart."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Any:
        """Run one statement."""


class Rows:
    """The table of a projection while an event is applied to it. Valid only until ``apply`` returns."""

    __slots__ = ("_table", "_tx")

    def __init__(self, tx: Executing, table: str) -> None:
        self._tx = tx
        self._table = table

    def put(self, **columns: object) -> None:
        """Insert a row, in place of the one with the same primary key."""
        names = ", ".join(columns)
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT OR REPLACE INTO {self._table} ({names}) VALUES ({marks})"  # noqa: S608 -- keywords
        self._tx.execute(sql, tuple(columns.values()))

    def delete(self, **columns: object) -> int:
        """Delete the rows whose columns are equal to these; give how many there were."""
        terms = " AND ".join(f"{name} = ?" for name in columns) or "1"
        sql = f"DELETE FROM {self._table} WHERE {terms}"  # noqa: S608 -- keywords of a call
        return int(self._tx.execute(sql, tuple(columns.values())).rowcount)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """Run one statement, in which ``{table}`` is the table; give its rows."""
        rows = self._tx.execute(sql.replace("{table}", self._table), parameters)
        return list(rows)


@record(eq=False)
class Declaration:
    """A projection, as its author declared it."""

    name: str
    plugin: str
    version: int
    patterns: Sequence[str]
    apply: Apply
    classes: Mapping[str, type[Notification]]
    """Of its events, by name; what has none is given as Delivered."""
    document: type[Message] | None
    """What one of its documents is; None: it has a table."""
    columns: str | None
    """Of its table, in SQL."""
    key: Callable[[Any], str] | None
    """Which of its documents an event is about; None: there is one."""

    @property
    def kind(self) -> str:
        """Give ``document`` or ``table``."""
        return "table" if self.document is None else "document"

    def read(self, event: StoredEvent, cursor: str) -> object:
        """Make what ``apply`` is given of an event."""
        kind = self.classes.get(event.event)
        if kind is not None:
            return kind.__pydantic_validator__.validate_json(event.data)
        return Delivered.of(event, cursor)

    def key_of(self, event: object) -> str:
        """Name the document that an event is about."""
        key: object = "" if self.key is None else self.key(event)
        if not isinstance(key, str):  # another kind would be stored, and never be found again
            raise TypeError(f"key gave {type(key).__name__}, not str")
        return key


@record
class _Options:
    version: int
    name: str | None
    patterns: Sequence[str]
    columns: str | None
    key: Callable[[Any], str] | None


def projection(
    *,
    version: int = 1,
    name: str | None = None,
    patterns: Sequence[str] = (),
    key: Callable[[Any], str] | None = None,
) -> Callable[[Callable[[S, E], S]], Callable[[S, E], S]]:
    """Keep a document up to date with ``apply(state, event) -> state``.

    The state is a Message whose fields all have defaults: it begins as that. The event is annotated with the
    class of a Notification, or several (``Sold | Returned``); or with Delivered, and then ``patterns`` say
    which. ``key(event)`` names the document where there are many. ``apply`` is pure, and runs in a thread;
    raise ``version`` when it changes, and the state is built again. ``name``: default is the function's.
    """

    def mark(apply: Callable[[S, E], S]) -> Callable[[S, E], S]:
        return _marked(apply, _Options(version, name, patterns, None, key))

    return mark


def table_projection(
    columns: str, *, version: int = 1, name: str | None = None, patterns: Sequence[str] = ()
) -> Callable[[Callable[[Rows, E], None]], Callable[[Rows, E], None]]:
    """Keep a table up to date with ``apply(rows, event)``.

    ``columns``: ``"sku TEXT PRIMARY KEY, n INTEGER"``. The table has a primary key. ``apply``
    does nothing but change rows; it runs in the writer's thread, in slices of some milliseconds. The rest is
    as for ``projection``.
    """

    def mark(apply: Callable[[Rows, E], None]) -> Callable[[Rows, E], None]:
        return _marked(apply, _Options(version, name, patterns, columns, None))

    return mark


def fold_of(function: Apply) -> Declaration:
    """Read what any ``apply(state, event)`` says of itself by its annotations; raise ProjectionError."""
    name = f"{function.__module__}.{function.__qualname__}"
    first, second = parameters_of(function, name)
    return Declaration(
        name=name,
        plugin="",
        version=1,
        patterns=(),
        apply=function,
        classes=classes_of(second, name),
        document=_document(first, name),
        columns=None,
        key=None,
    )


def declaration_of(function: Apply, plugin: str) -> Declaration:
    """Read what a decorated function declares; raise ProjectionError, with its place."""
    try:
        return _declared(function, plugin)
    except ProjectionError as error:
        raise ProjectionError(f"{error.message}{place_of(function)}") from error


def _declared(function: Apply, plugin: str) -> Declaration:
    options: _Options = getattr(function, _OPTIONS)
    name = options.name or function.__name__
    if not _NAME.fullmatch(name):
        raise ProjectionError(f"{name!r} names no projection: small letters, digits and underscores")
    first, second = parameters_of(function, name)
    classes = classes_of(second, name)
    patterns = tuple(options.patterns) or tuple(classes)
    if not patterns or not all(map(is_event_pattern, patterns)):
        raise ProjectionError(f"projection {name}: patterns={list(patterns)} are to be event patterns")
    if options.columns is not None:
        _check_table(options.columns, name)
    return Declaration(
        name=name,
        plugin=plugin,
        version=options.version,
        patterns=patterns,
        apply=function,
        classes=classes,
        document=None if options.columns is not None else _document(first, name),
        columns=options.columns,
        key=options.key,
    )


def _marked(apply: F, options: _Options) -> F:
    setattr(apply, PROJECTION, True)
    setattr(apply, _OPTIONS, options)
    return apply


def parameters_of(function: Apply, name: str) -> tuple[Any, Any]:
    """Give what the two parameters of a function are annotated with; raise ProjectionError."""
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise ProjectionError(f"projection {name}: annotation not found at load: {error}") from error
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ProjectionError(f"projection {name} must not be async: it runs in a thread, and awaits nothing")
    names = list(inspect.signature(function).parameters)
    if len(names) != 2 or not all(parameter in hints for parameter in names):
        raise ProjectionError(f"projection {name} takes a state and an event, both annotated")
    return hints[names[0]], hints[names[1]]


def classes_of(annotation: Any, name: str) -> Mapping[str, type[Notification]]:
    """Give the told events that an annotation means, by each of their names; raise ProjectionError."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if options == (Delivered,):
        return {}
    for option in options:
        if not (isinstance(option, type) and issubclass(option, Notification) and hasattr(option, "__ksi__")):
            raise ProjectionError(f"projection {name}: {option!r} is neither Delivered nor a told event")
    return {name: option for option in options for name in (spec_of(option).name, *spec_of(option).formerly)}


def _check_table(columns: str, name: str) -> None:
    try:
        check_table(columns)
    except InvalidArgument as error:
        raise ProjectionError(f"projection {name}: {error.message}") from error


def _document(annotation: Any, name: str) -> type[Message]:
    if not (isinstance(annotation, type) and issubclass(annotation, Message)):
        raise ProjectionError(f"projection {name}: the state must be annotated with a Message")
    needed = [field for field, info in annotation.model_fields.items() if info.is_required()]
    if needed:
        raise ProjectionError(f"projection {name}: its state has no default for {', '.join(needed)}")
    return annotation
