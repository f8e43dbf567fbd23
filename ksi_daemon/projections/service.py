"""Projections, as handlers have them: found by name or by function, read in one snapshot, built again."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ksi_common.clock import Clock
from ksi_common.errors import FailedPrecondition, NotFound
from ksi_common.messages import Message
from ksi_common.records import record
from ksi_daemon.catalog import Catalog
from ksi_daemon.database import Connection, Database
from ksi_daemon.eventlog import EventLog
from ksi_daemon.hub import Hub
from ksi_daemon.projections.declaration import Declaration
from ksi_daemon.projections.follower import Projection
from ksi_daemon.projections.generations import Generation
from ksi_daemon.projections.queries import Entry, Row, by_key, in_order
from ksi_daemon.threads import Threads

S = TypeVar("S", bound=Message)
E = TypeVar("E")
T = TypeVar("T")

READING = 2
"""Projections that read a page at once."""

_LIVE = "SELECT generation FROM projections WHERE name = ? AND role = 'live'"


@record
class Lag:
    """How far what readers see is behind the log."""

    events: int
    seconds: float
    """Since the oldest of them was told."""


class Projections:
    """Every projection of this daemon."""

    def __init__(self, database: Database, log: EventLog, hub: Hub, clock: Clock, catalog: Catalog) -> None:
        self._database = database
        self._log = log
        self._hub = hub
        self._clock = clock
        self._catalog = catalog
        self._threads = Threads(READING)
        self._followers: dict[str, Projection] = {}

    def take(self, declarations: Iterable[Declaration]) -> None:
        """Take in what plugins declare."""
        reading = asyncio.Semaphore(READING)
        for declaration in declarations:
            self._followers[declaration.name] = Projection(
                declaration,
                database=self._database,
                eventlog=self._log,
                hub=self._hub,
                threads=self._threads,
                reading=reading,
                charge=self._catalog.charge,
            )

    @property
    def all(self) -> Sequence[Projection]:
        """Give all, by name."""
        return [self._followers[name] for name in sorted(self._followers)]

    def named(self, name: str) -> Projection:
        """Find one; raise NotFound."""
        follower = self._followers.get(name)
        if follower is None:
            raise NotFound(
                f"there is no projection {name!r}",
                reason="unknown_projection",
                hint="projection:list names those there are",
            )
        return follower

    async def lag(self, follower: Projection) -> Lag:
        """Tell how far what readers see is behind."""
        generation = follower.live
        behind = follower.lag(generation) if generation is not None else self._hub.head
        if not behind:
            return Lag(0, 0.0)
        position = generation.position if generation is not None else 0
        rows = await self._database.read(
            "SELECT time FROM log WHERE seq > ? ORDER BY seq LIMIT 1", (position,)
        )
        age_us = self._clock.time_us() - rows[0]["time"] if rows else 0
        return Lag(behind, max(round(age_us / 1_000_000, 3), 0.0))

    async def document(self, apply: Callable[[S, E], S], key: str = "") -> S | None:
        """Read a document of the projection that ``apply`` declares; None: no event was about it."""
        declared = self._of(apply)
        found = await self.find(declared.name, (key,))
        if found is None or declared.document is None:
            return None
        return declared.document.model_validate(found)  # type: ignore[return-value]  # it declares S

    async def rows(
        self, apply: Callable[..., Any], sql: str, parameters: Sequence[Any] = ()
    ) -> Sequence[Row]:
        """Query the table of the projection that ``apply`` declares: ``{table}`` in ``sql`` is its name."""
        declared = self._of(apply)

        def query(connection: Connection, generation: Generation) -> Sequence[Row]:
            cursor = connection.execute(sql.replace("{table}", generation.table), parameters)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

        return await self._snapshot(declared, query)

    async def find(self, name: str, key: Sequence[Any]) -> Row | None:
        """Read a document, or the row with a primary key; None: there is none."""
        return await self._snapshot(
            self.named(name).declaration, lambda connection, live: by_key(connection, live, key)
        )

    async def page(
        self, name: str, *, where: Mapping[str, Any], after: Sequence[Any] | None, limit: int
    ) -> Sequence[Entry]:
        """Read documents or rows with their keys, in the order of these."""
        return await self._snapshot(
            self.named(name).declaration,
            lambda connection, live: in_order(connection, live, where=where, after=after, limit=limit),
        )

    def _of(self, apply: Callable[..., Any]) -> Declaration:
        for follower in self._followers.values():
            if follower.declaration.apply is apply:
                return follower.declaration
        raise FailedPrecondition(f"{apply.__qualname__} is no projection of a plugin that is loaded")

    async def _snapshot(self, declared: Declaration, query: Callable[[Connection, Generation], T]) -> T:
        """Ask what readers see, in one snapshot: a swap comes before it or after it."""

        def ask(connection: Connection) -> T:
            connection.execute("BEGIN")
            try:
                row = connection.execute(_LIVE, (declared.name,)).fetchone()
                if row is None:
                    raise FailedPrecondition(f"projection {declared.name} has not begun", reason="not_begun")
                number = row[0]
                return query(connection, Generation(declared.name, number, "live", 0, declared.columns))
            finally:
                connection.execute("COMMIT")

        async with self._database.reader() as reader:
            return await reader.run(ask)
