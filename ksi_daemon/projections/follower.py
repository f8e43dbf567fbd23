"""Keep one projection up to date, build it again beside that where it must be, and swap."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from ksi_common.errors import FailedPrecondition, KSIError
from ksi_common.events.projection import Rebuilt, Stopped
from ksi_daemon.database import Database, Transaction
from ksi_daemon.eventlog import EventLog
from ksi_daemon.hub import Batch, Channel, Hub
from ksi_daemon.projections.declaration import Declaration
from ksi_daemon.projections.folding import ApplyError, folder_of, missing_in, move
from ksi_daemon.projections.generations import Generation, begin, create, delete_some, retire_shadow, swap
from ksi_daemon.threads import Threads

log = structlog.get_logger()

UNSTORED: Final = 20_000
"""Positions that a projection may pass over, as nothing there is for it, before it stores how far it is."""
PAGE: Final = 3000
"""Rows that are looked at in one go: what is far behind needs few commits."""
RETRY_S: Final = 1.0
"""After the database refused, as it does when the disk is full."""


class Projection:
    """One projection. ``run`` follows the log; what readers see changes by commits of its own only."""

    def __init__(
        self,
        declaration: Declaration,
        *,
        database: Database,
        eventlog: EventLog,
        hub: Hub,
        threads: Threads,
        reading: asyncio.Semaphore,
        charge: Callable[[str], object],
    ) -> None:
        self.declaration = declaration
        self.live: Generation | None = None
        self.shadow: Generation | None = None
        self.error: str | None = None
        """Why it does not go on."""
        self._given_up = False
        """It does not run any more."""
        self._database = database
        self._log = eventlog
        self._hub = hub
        self._reading = reading
        self._charge = charge
        self._folder = folder_of(declaration, database, eventlog, threads)
        self._retired: list[Generation] = []
        self._channel: Channel | None = None
        self._woken = asyncio.Event()
        self._idle = False
        self._begun = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def status(self) -> str:
        """Give ``stopped``, ``rebuilding``, ``building`` (for the first time) or ``following``."""
        if self.error is not None:
            return "stopped"
        if self.shadow is not None:
            return "rebuilding"
        return "following" if self.live is not None and not self.lag(self.live) else "building"

    def lag(self, generation: Generation) -> int:
        """Count the positions of the log that it has not looked at, though they may be for it."""
        if self._channel is not None:
            self._hub.settle(self._channel)
        if self._idle and not self._woken.is_set() and self.error is None and self._fits(generation):
            return 0
        return max(self._hub.head - generation.position, 0)

    async def wait_for(self, seq: int) -> None:
        """Return when readers see all up to ``seq``; raise FailedPrecondition where it stopped."""
        while self.live is None or (self.live.position < seq and self.lag(self.live)):
            if self.error is not None:
                raise FailedPrecondition(
                    f"projection {self.declaration.name} stopped: {self.error}", reason="stopped"
                )
            self._moved.clear()
            await self._moved.wait()

    async def wait_swapped(self, shadow: Generation) -> None:
        """Return when readers see what is built there; raise FailedPrecondition where that is given up."""
        while shadow.role == "shadow":
            if self.error is not None or self.shadow is not shadow:
                reason = self.error or "it is built anew"
                raise FailedPrecondition(f"projection {shadow.name} is not built: {reason}", reason="stopped")
            self._moved.clear()
            await self._moved.wait()

    async def rebuild(self) -> Generation:
        """Build it again, beside what readers see; one that is being built begins anew.

        That it is to be built is on disk when this returns.
        """
        declared = self.declaration
        await self._begun.wait()
        if self._given_up:
            raise FailedPrecondition(
                f"projection {declared.name} failed again and again: {self.error}",
                reason="given_up",
                hint="the daemon's log says why; it begins again with the daemon",
            )

        def unit(tx: Transaction) -> Generation:
            retire_shadow(tx, declared.name)
            made = create(tx, declared.name, "shadow", declared.version, declared.columns)
            tx.on_commit(lambda: self._begin_shadow(made))
            return made

        return await self._database.write(unit)

    def deliver(self, batch: Batch) -> None:
        """Hear that there is something in the log for it."""
        del batch
        self._woken.set()

    def fail(self, name: str, error: BaseException) -> None:
        """Give up, as the supervisor does: it failed again and again."""
        del name
        self.error = repr(error)
        self._given_up = True
        self._begun.set()  # for who waits to have it built again
        self._moved.set()

    async def run(self) -> None:
        """Follow the log until cancelled."""
        channel = self._channel = self._hub.attach(self, self.declaration.patterns, None)
        try:
            await self._begin()
            self._begun.set()
            while True:
                self._woken.clear()
                self._idle = False
                while await self._step():
                    self._moved.set()
                self._idle = True
                self._moved.set()
                await self._woken.wait()
        finally:
            self._idle = False
            self._begun.clear()
            self._hub.detach(self, channel)

    async def _begin(self) -> None:
        """Find what is on disk, and begin what the code of now needs and the disk does not have."""
        declared = self.declaration
        found = await self._database.write_apart(
            lambda tx: begin(tx, declared.name, declared.version, declared.columns)
        )
        self._retired = [each for each in found if each.role == "retired"]
        self.live = next(each for each in found if each.role == "live")
        self.shadow = next((each for each in found if each.role == "shadow"), None)

    async def _step(self) -> bool:
        """Do the next slice of what is to be done; give whether there may be more."""
        try:
            return await self._next()
        except ApplyError as error:
            await self._stop(error)
            return False
        except KSIError as error:
            if error.details.get("reason") == "moved":  # a rebuild began meanwhile, and this one is given up
                return True
            if not error.retryable:
                raise
            log.warning("projection.delayed", projection=self.declaration.name, error=str(error))
            await asyncio.sleep(RETRY_S)
            return True

    async def _next(self) -> bool:
        if self.error is None:
            moved = False
            for generation in (self.live, self.shadow):
                if generation is not None and self._fits(generation):
                    moved = await self._advance(generation) or moved
            if self.shadow is not None and self.shadow.position >= self._hub.head:
                await self._swap()
            if moved:
                return True
        return bool(self._retired) and await self._delete_some()

    async def _advance(self, generation: Generation) -> bool:
        """Apply the next page of the log."""
        head = self._hub.head
        if generation.position >= head:
            return False
        if generation.position < self._log.horizon:
            horizon = self._log.horizon
            await move(self._database, generation, horizon, horizon - generation.position)
        async with self._reading:
            page = await self._log.page(generation.position, head, self.declaration.patterns, None, PAGE)
            if page.events:
                await self._folder.fold(generation, page)
                generation.applied += len(page.events)
                return True
        if missing_in(page) or page.last - generation.stored >= UNSTORED:
            await move(self._database, generation, page.last, missing_in(page))
        generation.position = page.last
        return True

    async def _swap(self) -> None:
        shadow, old = self.shadow, self.live
        if shadow is None:
            return
        name = self.declaration.name
        told = Rebuilt(name=name, version=shadow.version, position=shadow.position, missing=shadow.missing)

        def unit(tx: Transaction) -> None:
            swap(tx, shadow)
            tx.tell(told)
            tx.on_commit(swapped)

        def swapped() -> None:
            shadow.role = "live"
            self.live, self.shadow = shadow, None
            if old is not None:
                self._retired.append(old)

        await self._database.write_apart(unit)
        log.info("projection.rebuilt", projection=name, version=shadow.version, position=shadow.position)

    async def _stop(self, error: ApplyError) -> None:
        name, event = self.declaration.name, error.event
        self.error = str(error)
        self._charge(self.declaration.plugin)
        log.error("projection.stopped", projection=name, seq=event.seq, error=self.error, exc_info=error)
        told = Stopped(name=name, event_id=event.event_id, seq=event.seq or 0, error=self.error)
        await self._database.write_apart(lambda tx: tx.tell(told))

    def _begin_shadow(self, made: Generation) -> None:
        if self.shadow is not None:
            self._retired.append(self.shadow)
        self.shadow = made
        self.error = None
        self._woken.set()

    async def _delete_some(self) -> bool:
        generation = self._retired[0]
        if await self._database.write_apart(lambda tx: delete_some(tx, generation)):
            self._retired.pop(0)
        return True

    def _fits(self, generation: Generation) -> bool:
        """Tell whether the code of now goes on with it."""
        declared = self.declaration
        return (generation.version, generation.columns) == (declared.version, declared.columns)
