"""Replays: the whole log into a sandbox, or a part of it into a subscriber."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from ksi_common.envelope import EventEnvelope, StoredEvent, event_context
from ksi_common.errors import NotFound
from ksi_common.messages import spec_of
from ksi_common.records import record
from ksi_daemon.assembly import Assembly, Subscriber
from ksi_daemon.database import Database
from ksi_daemon.eventlog import EventLog
from ksi_daemon.handlers import Compiler
from ksi_daemon.hub import Hub
from ksi_daemon.projections.folding import missing_in
from ksi_daemon.replay.comparing import Compared
from ksi_daemon.replay.holding_back import HoldingBack
from ksi_daemon.replay.sandboxes import Sandboxes
from ksi_daemon.services import Services
from ksi_daemon.supervisor import attempt_async
from ksi_daemon.threads import Threads


@record
class Step:
    """How far a replay is."""

    applied: int
    position: int
    end: int
    missing: int = 0
    failed: int = 0
    error: str | None = None
    held_back: int = 0
    done: bool = False
    compared: Sequence[Compared] = ()
    """At the end of a sandbox: what came of each table."""
    left_out: Sequence[tuple[str, str]] = ()
    """Likewise: tables that no plugin says how to make of the log; each after its plugin."""
    socket: str | None = None
    """Likewise: where it answers, if it is kept."""


class Replays:
    """Go through the log again."""

    def __init__(
        self,
        assembly: Assembly,
        services: Services,
        database: Database,
        log: EventLog,
        hub: Hub,
        sandboxes: Sandboxes,
    ) -> None:
        self._assembly = assembly
        self._services = services
        self._database = database
        self._log = log
        self._hub = hub
        self._sandboxes = sandboxes
        self._threads = Threads(1)

    async def into_sandbox(self, *, keep: bool = False) -> AsyncGenerator[Step, None]:
        """Make a daemon of the whole log, and compare the tables that plugins can make again.

        ``keep``: it answers what is safe until this generator is closed; otherwise it is gone at the end.
        """
        async with AsyncExitStack() as made, AsyncExitStack() as making:
            # Before it is started: it is told of the snapshot that there is then.
            await making.enter_async_context(self._sandboxes.turn)
            said = await made.enter_async_context(self._sandboxes.start(keep_running=keep))
            async for words in said:
                end = words.get("end", words["position"])
                if not words.get("done"):
                    yield Step(words["applied"], words["position"], end, words["missing"])
            await making.aclose()
            yield Step(
                words["applied"],
                words["position"],
                words["position"],
                words["missing"],
                done=True,
                compared=[Compared(**found) for found in words["compared"]],
                left_out=[(plugin, table) for plugin, table in words["left_out"]],
                socket=words["socket"] if keep else None,
            )
            if keep:
                await asyncio.get_running_loop().create_future()  # for ever

    async def into_handler(
        self, name: str, *, start: int, end: int | None, patterns: Sequence[str], effects: bool
    ) -> AsyncGenerator[Step, None]:
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
                done=page.last >= until,
            )
            yield step
        if start >= until:
            yield replace(step, done=True)

    def _subscriber(self, name: str) -> Subscriber:
        known = {f"{each.plugin}.{each.name}": each for each in self._assembly.subscribers}
        if name not in known:
            raise NotFound(
                f"there is no handler {name!r} of told events",
                reason="unknown_handler",
                hint=f"there are {', '.join(sorted(known)) or 'none'}",
            )
        return known[name]


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
