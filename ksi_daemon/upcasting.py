"""Events of older code, as the code of now knows them; those of newer code as they are, and marked.

They are brought up to date as they are read; what is stored stays as it was told.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import orjson
import structlog

from ksi_common.envelope import StoredEvent
from ksi_common.errors import FailedPrecondition
from ksi_common.messages import Notification, spec_of
from ksi_daemon.event_versions import FIELD, stamped, version_of
from ksi_daemon.marks import UPCASTER
from ksi_daemon.supervisor import attempt

log = structlog.get_logger()

Data = dict[str, Any]
F = TypeVar("F", bound=Callable[[Data], Data])

_OPTIONS: Final = "__ksi_upcaster_options__"


class UpcasterError(FailedPrecondition):
    """An upcaster is declared wrongly; the message says which and how."""


def upcaster(event: type[Notification], *, version: int) -> Callable[[F], F]:
    """Bring data of ``version`` of a told event to the next one, whenever the log is read.

    The function is pure: it takes the data of a stored event, and gives that of the next version. A class of
    version 3 has two, from 1 and from 2. What is stored stays as it is.
    """

    def mark(function: F) -> F:
        setattr(function, UPCASTER, True)
        setattr(function, _OPTIONS, (event, version))
        return function

    return mark


def upcaster_of(function: Callable[[Data], Data]) -> tuple[type[Notification], int]:
    """Give what a decorated function takes: the class, and the version; raise UpcasterError."""
    event, version = getattr(function, _OPTIONS)
    known = spec_of(event).version
    if not 1 <= version < known:
        raise UpcasterError(
            f"{function.__qualname__} takes version {version} of {spec_of(event).name}, which is at {known}"
        )
    return event, version


class Upcasting:
    """Bring events up to date as they are read from the log."""

    def __init__(
        self,
        classes: Mapping[str, type[Notification]],
        upcasters: Mapping[tuple[str, int], Callable[[Data], Data]],
    ) -> None:
        self._versions = {
            name: (spec.name, spec.version)
            for kind in classes.values()
            for spec in (spec_of(kind),)
            for name in (spec.name, *spec.formerly)
        }
        """Of declared events, by each of their names: the name of now, and the version."""
        self._upcasters = upcasters
        self._failed: set[tuple[str, int]] = set()

    def __call__(self, event: StoredEvent) -> None:
        """Bring one up to date. Where that cannot be done it stays as it is, and is marked as raw."""
        known = self._versions.get(event.event)
        if known is None or event.kind == "request":
            return
        name, newest = known
        version = version_of(event.data)
        if version == newest:
            return
        if version > newest:
            event.raw = True
            return
        made = attempt(lambda: self._upcast(name, event.data, version, newest))
        if isinstance(made, BaseException):
            event.raw = True
            self._report(name, version, made)
        else:
            event.data = made

    def _upcast(self, name: str, stored: bytes, version: int, newest: int) -> bytes:
        data: Data = orjson.loads(stored)
        data.pop(FIELD, None)
        for older in range(version, newest):
            data = self._upcasters[name, older](data)
        return stamped(orjson.dumps(data), newest)

    def _report(self, name: str, version: int, error: BaseException) -> None:
        if (name, version) not in self._failed:
            self._failed.add((name, version))
            log.error("event.not_upcast", told=name, version=version, error=repr(error), exc_info=error)


def missing_upcasters(
    classes: Iterable[type[Notification]], upcasters: Mapping[tuple[str, int], Callable[[Data], Data]]
) -> str | None:
    """Say which version cannot be read, where there is one."""
    for kind in classes:
        spec = spec_of(kind)
        for version in range(1, spec.version):
            if (spec.name, version) not in upcasters:
                return f"{spec.name} is at version {spec.version}, and has no upcaster of version {version}"
    return None


def upcasting_by(functions: Iterable[Callable[[Data], Data]]) -> Upcasting:
    """Make an Upcasting of decorated functions, where nothing else is known of the events."""
    found = [(*upcaster_of(function), function) for function in functions]
    classes = {spec_of(event).name: event for event, _, _ in found}
    return Upcasting(classes, {(spec_of(event).name, version): made for event, version, made in found})
