"""Replays: the whole log into a sandbox, or a part of it into a subscriber."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ksi_common.async_db import AsyncSQLiteDB
from ksi_common.clock import Clock
from ksi_common.envelope import EventEnvelope, StoredEvent, event_context
from ksi_common.errors import NotFound
from ksi_common.messages import spec_of
from ksi_daemon.assembly import Assembly, Subscriber
from ksi_daemon.database import Database
from ksi_daemon.eventlog import EventLog
from ksi_daemon.handlers import Compiler
from ksi_daemon.hub import Hub
from ksi_daemon.projections.folding import missing_in
from ksi_daemon.replay.comparing import Compared, compare
from ksi_daemon.replay.holding_back import HoldingBack
from ksi_daemon.replay.rebuilding import Rebuilding
from ksi_daemon.replay.sandbox import sandbox
from ksi_daemon.services import Services
from ksi_daemon.supervisor import attempt_async
from ksi_daemon.threads import Threads


@dataclass(frozen=True, slots=True)
class Step:
    """How far a replay is."""

    applied: int
    position: int
    end: int
    missing: int = 0
    failed: int = 0
    error: str | None = None
    held_back: int = 0
    compared: Sequence[tuple[str, Compared]] | None = None
    """At the end of a sandbox: of each table its plugin, and what came of it."""


class Replays:
    """Go through the log again."""

    def __init__(
        self,
        assembly: Assembly,
        services: Services,
        database: Database,
        log: EventLog,
        hub: Hub,
        clock: Clock,
    ) -> None:
        self._assembly = assembly
        self._services = services
        self._database = database
        self._log = log
        self._hub = hub
        self._clock = clock
        self._threads = Threads(1)

    async def into_sandbox(self) -> AsyncIterator[Step]:
        """Make the tables that plugins can rebuild, of the whole log, and compare them with the live ones."""
        assembly = self._assembly
        migrations = {plugin.name: assembly.relay.migrations(plugin.name) for plugin in assembly.loaded}
        async with sandbox(migrations, self._clock, self._threads) as made:
            work = Rebuilding(self._log, assembly.rebuilders, made, self._threads)
            end = self._hub.head
            while await work.advance(end):
                yield _step(work, end)
            # The rest within one snapshot of the live tables, so that both are of the same moment.
            async with AsyncSQLiteDB(self._database.path, read_only=True) as live:
                await live.execute("ATTACH ? AS made", (str(made.path),))
                await live.execute("BEGIN")
                end = (await live.fetch("SELECT coalesce(max(seq), 0) FROM log"))[0][0]
                while await work.advance(end):
                    yield _step(work, end)
                compared = [
                    (each.plugin, await live.run(_comparing(each.name))) for each in assembly.rebuilders
                ]
                await live.execute("COMMIT")
            yield replace(_step(work, end), compared=compared)

    async def into_handler(
        self, name: str, *, start: int, end: int | None, patterns: Sequence[str], effects: bool
    ) -> AsyncIterator[Step]:
        """Give a subscriber of a plugin its events of ``start < seq <= end`` again."""
        subscriber = self._subscriber(name)
        held = HoldingBack(self._services)
        call = subscriber.call
        if not effects:
            _, call = Compiler(held, self._threads, self._database).subscriber(subscriber.function)  # type: ignore[arg-type]  # it has what a compiler asks for
        spec = spec_of(subscriber.event)
        wanted = (spec.name, *spec.formerly)
        until = self._hub.head if end is None else min(end, self._hub.head)
        step = Step(0, start, until, max(self._log.horizon - start, 0))
        while step.position < until:
            page = await self._log.page(step.position, until, patterns or wanted, None)
            events = [event for event in page.events if event.event in wanted]
            errors = [
                error for event in events if (error := await _give(subscriber, call, event)) is not None
            ]
            step = Step(
                step.applied + len(events),
                page.last,
                until,
                step.missing + missing_in(page),
                step.failed + len(errors),
                step.error or next(iter(errors), None),
                held.count,
            )
            yield step
        if start >= until:
            yield step

    def _subscriber(self, name: str) -> Subscriber:
        known = {f"{each.plugin}.{each.name}": each for each in self._assembly.subscribers}
        if name not in known:
            raise NotFound(
                f"there is no handler {name!r} of told events",
                reason="unknown_handler",
                hint=f"there are {', '.join(sorted(known)) or 'none'}",
            )
        return known[name]


def _comparing(table: str) -> Callable[[Any], Compared]:
    return lambda connection: compare(connection, table, made="made")


def _step(work: Rebuilding, end: int) -> Step:
    return Step(work.applied, work.position, end, work.missing)


async def _give(subscriber: Subscriber, call: Callable[..., Any], event: StoredEvent) -> str | None:
    """Give one event; the error, where it raises."""
    envelope = EventEnvelope(
        event.event,
        {},
        event.event_id,
        event.correlation_id,
        event.causation_id,
        event.actor,
        event.hop,
    )

    async def deliver() -> None:
        message = subscriber.event.__pydantic_validator__.validate_json(event.data)
        envelope.message = message
        with event_context(envelope):
            await call(message, envelope)

    error = await attempt_async(deliver)
    return None if error is None else f"{event.event} at {event.seq}: {type(error).__name__}: {error}"
