"""What a subscriber is given where its effects are to be held back: it may look, and does nothing."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, TypeVar

from ksi_common.async_db import AsyncSQLiteDB
from ksi_common.bus import Bus, Delivered
from ksi_common.clock import Clock
from ksi_common.errors import FailedPrecondition
from ksi_common.messages import Message, Notification, Request, Stream, spec_of
from ksi_common.paths import Paths
from ksi_daemon.bus import LocalBus
from ksi_daemon.catalog import Catalog
from ksi_daemon.database import Database, Transaction
from ksi_daemon.eventlog import EventLog
from ksi_daemon.services import Services
from ksi_daemon.settings import Settings

R = TypeVar("R", bound=Message)
T = TypeVar("T")

_HARMLESS: Final[frozenset[Any]] = frozenset((Clock, Catalog, EventLog, Paths, Settings))


class HoldingBack:
    """Services for one replay: those that could do something are replaced, or refused."""

    def __init__(self, services: Services) -> None:
        self.count = 0
        """Effects that were held back."""
        self._services = services

    def get(self, kind: Any) -> Any:
        """Find a service; raise FailedPrecondition where nobody knows what it does."""
        if kind in {Bus, LocalBus}:
            return _Bus(self, self._services.get(Bus))  # type: ignore[type-abstract]  # its own key
        if kind is Database:
            return _Database(self, self._services.get(Database))
        if kind in _HARMLESS:
            return self._services.get(kind)
        name = getattr(kind, "__name__", kind)
        raise FailedPrecondition(
            f"it takes {name}, whose effects cannot be held back", reason="effects", hint="effects=true"
        )


class _TakenBack(Exception):
    """A unit of work has run, and is to leave nothing."""


class _Database:
    def __init__(self, held: HoldingBack, database: Database) -> None:
        self._held = held
        self._database = database
        self.read = database.read
        self.peek = database.peek

    async def write(self, unit: Callable[[Transaction], T]) -> T:
        """Run the unit, take it back, and give what it gave."""
        given: list[T] = []

        def run(tx: Transaction) -> None:
            given[:] = [unit(tx)]
            raise _TakenBack

        self._held.count += 1
        with suppress(_TakenBack):
            await self._database.write_apart(run)
        return given[0]

    write_apart = write

    def reader(self) -> AbstractAsyncContextManager[AsyncSQLiteDB]:
        """Borrow a connection that cannot write."""
        return self._database.reader()


class _Bus:
    def __init__(self, held: HoldingBack, bus: Bus) -> None:
        self._held = held
        self._bus = bus

    async def call(self, request: Request[R], *, timeout_s: float | None = None) -> R:
        """Ask what changes nothing; refuse the rest."""
        self._check(request)
        return await self._bus.call(request, timeout_s=timeout_s)

    def stream(self, request: Stream[R], *, timeout_s: float | None = None) -> AsyncIterator[R]:
        """Ask what changes nothing; refuse the rest."""
        self._check(request)
        return self._bus.stream(request, timeout_s=timeout_s)

    async def notify(self, notification: Notification) -> None:
        """Tell nobody."""
        spec_of(type(notification))
        self._held.count += 1

    def subscribe(
        self, patterns: str | Sequence[str], *, start: str | Mapping[str, Any] = "now"
    ) -> AsyncIterator[Delivered]:
        """Follow: that changes nothing."""
        return self._bus.subscribe(patterns, start=start)

    def _check(self, message: Message) -> None:
        spec = spec_of(type(message))
        if not spec.safe:
            self._held.count += 1
            raise FailedPrecondition(
                f"{spec.name} is not asked while effects are held back", reason="effects"
            )
