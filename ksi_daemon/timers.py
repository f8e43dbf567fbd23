"""Timers that outlive the daemon: one table, one wake-up.

A timer is a name, a time and a message. A Notification is told in the commit that takes the timer away:
exactly once. A Request is asked first and the timer taken away then: at least once.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import structlog
from pydantic_core import from_json

from ksi_common.bus import Bus
from ksi_common.clock import Clock
from ksi_common.envelope import set_current
from ksi_common.errors import Cancelled, KSIError, OperationalError
from ksi_common.events.timer import Failed
from ksi_common.messages import Message, Notification, Request
from ksi_common.records import record
from ksi_daemon import timer_rows
from ksi_daemon.database import Database, Transaction
from ksi_daemon.dead_letters import DeadLetter, DeadLetters, as_stored
from ksi_daemon.timer_rows import Timer

log = structlog.get_logger()

T = TypeVar("T")

MAX_IN_FLIGHT: Final = 64
"""What waits for an answer; the rest waits its turn, so a handler had better hand long work over."""
MAX_ATTEMPTS: Final = 8
"""Of a request; with the back-off between them they take two minutes."""
MAX_BACKOFF_S: Final = 60.0
MAX_WISHED_S: Final = 3600.0
"""Of an error's ``retry_after_s``, which is kept to where it is longer than the back-off."""
MAX_SLEEP_S: Final = 60.0
"""A jump of the wall clock is noticed after this at the latest."""
MIN_SLEEP_S: Final = 0.001
STORE_RETRY_S: Final = 1.0
PAGE: Final = 64
"""Timers of one look at the table."""


@record
class TimerStatistics:
    """Figures since the start."""

    fired: int
    """Told, or asked and answered."""
    retried: int
    failed: int
    """Given up."""
    in_flight: int
    unknown: Sequence[str]
    """Events that timers wait with because no plugin declares them."""


class Timers(Protocol):
    """Tell or ask later, whatever happens to the daemon until then. A name has one timer.

    What is told or asked has the event that set the timer as its cause. What was due while the daemon
    was down is fired once, in order of time, when it is back.

    A Notification is told once. A Request is asked at least once: a handler that calls ``cancel_in`` or
    ``schedule_in`` for its own timer, in the unit that does its work, makes that once. One that is refused,
    or fails 8 times, is told as timer:failed, and a dead letter by which it can be asked again.
    """

    async def schedule(
        self,
        name: str,
        message: Request[Any] | Notification,
        *,
        due_us: int | None = None,
        after_s: float | None = None,
        replace: bool = True,
    ) -> bool:
        """Set a timer, in a commit of its own, for a time or for a while from now.

        ``replace``: take the place of the timer of that name; otherwise leave that one, and give False.
        """
        ...

    def schedule_in(
        self,
        tx: Transaction,
        name: str,
        message: Request[Any] | Notification,
        *,
        due_us: int | None = None,
        after_s: float | None = None,
        replace: bool = True,
    ) -> bool:
        """Set a timer in a unit of work: it commits with what else the unit does."""
        ...

    async def cancel(self, name: str) -> bool:
        """Take a timer away; False where there is none. A request that is in flight is not stopped."""
        ...

    def cancel_in(self, tx: Transaction, name: str) -> bool:
        """Take a timer away in a unit of work."""
        ...

    async def list(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[Timer]:
        """List timers whose name begins with ``prefix``, by name, from beyond the name ``after``."""
        ...


class Alarm(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Do not call."""
        ...


@runtime_checkable
class AlarmClock(Protocol):
    """A clock that calls by itself, as one that only tests move."""

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Alarm:
        """Call after so many seconds."""
        ...


def _in_loop(delay_s: float, callback: Callable[[], object]) -> Alarm:
    return asyncio.get_running_loop().call_later(delay_s, callback)


class DatabaseTimers:
    """The timers of one daemon: ``serve`` fires them, the other methods work without it.

    ``message_class`` finds the class of a declared event. A timer whose event nobody declares at present
    (its plugin is not loaded) waits until somebody does.
    An AlarmClock wakes them, or, with any other clock, the loop does.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        clock: Clock,
        *,
        message_class: Callable[[str], type[Message] | None],
        letters: DeadLetters,
    ) -> None:
        self._database = database
        self._bus = bus
        self._clock = clock
        self._letters = letters
        letters.offer("timer", self._redrive)
        self._message_class = message_class
        self._call_later = clock.call_later if isinstance(clock, AlarmClock) else _in_loop
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._in_flight: set[int] = set()
        self._unknown: set[str] = set()
        self._next_due = math.inf
        """Slept for; what is due before it wakes us."""
        self._looking = False
        self._changed: set[str] = set()
        """Names whose timers are not any more what this look at the table has seen."""
        self._sooner = math.inf
        """The earliest time that one of them was set to."""
        self._fired = self._retried = self._failed = 0

    @property
    def statistics(self) -> TimerStatistics:
        """Give figures since the start."""
        return TimerStatistics(
            self._fired, self._retried, self._failed, len(self._in_flight), sorted(self._unknown)
        )

    async def schedule(
        self,
        name: str,
        message: Request[Any] | Notification,
        *,
        due_us: int | None = None,
        after_s: float | None = None,
        replace: bool = True,
    ) -> bool:
        """Set a timer, in a commit of its own."""
        due = self._due(due_us, after_s)
        unit = partial(self.schedule_in, name=name, message=message, due_us=due, replace=replace)
        return await self._database.write_apart(unit)

    def schedule_in(
        self,
        tx: Transaction,
        name: str,
        message: Request[Any] | Notification,
        *,
        due_us: int | None = None,
        after_s: float | None = None,
        replace: bool = True,
    ) -> bool:
        """Set a timer in a unit of work."""
        due = self._due(due_us, after_s)
        is_set = timer_rows.set_timer(tx, name, due, message, replace=replace)
        if is_set:
            tx.on_commit(lambda: self._note(name, due))
        return is_set

    async def cancel(self, name: str) -> bool:
        """Take a timer away; False where there is none."""
        return await self._database.write_apart(lambda tx: self.cancel_in(tx, name))

    def cancel_in(self, tx: Transaction, name: str) -> bool:
        """Take a timer away in a unit of work."""
        existed = timer_rows.cancel(tx, name)
        if existed:
            tx.on_commit(lambda: self._note(name))
        return existed

    async def list(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[Timer]:
        """List timers whose name begins with ``prefix``, by name."""
        return await timer_rows.named(self._database, prefix, after, limit)

    async def serve(self) -> None:
        """Fire what is due, for ever. Cancelled, it leaves what is in flight to be asked again."""
        # A task that is cancelled before its first step cannot give back what it was given.
        self._in_flight.clear()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                self._next_due = math.inf
                self._unknown = {event for event in self._unknown if self._message_class(event) is None}
                self._looking = True
                try:
                    due_us = await self._fire_due(group)
                finally:
                    self._looking = False
                await self._sleep_until(due_us)

    async def _fire_due(self, group: asyncio.TaskGroup) -> float:
        """Start what is due, in order; give when the next one is."""
        while True:
            self._changed.clear()
            self._sooner = math.inf
            # Taken before the read: a timer that is done with while we read is still in what we get.
            busy = frozenset(self._in_flight)
            found = await timer_rows.nearest(self._database, PAGE + len(busy), without=self._unknown)
            timers = [timer for timer in found if timer.id not in busy]
            for timer in timers:
                if timer.due_us > self._clock.time_us():
                    return timer.due_us
                if self._sooner < timer.due_us:
                    break  # and read again: one that goes before it was set since
                await self._start(timer, group)
            else:
                if len(timers) < PAGE:
                    return math.inf

    async def _sleep_until(self, due_us: float) -> None:
        self._next_due = due_us
        delay_s = min((due_us - self._clock.time_us()) / 1e6, MAX_SLEEP_S)
        await self._wait(self._wake, max(delay_s, MIN_SLEEP_S))

    def _note(self, name: str, due_us: float = math.inf) -> None:
        """Take note that a timer was set or taken away."""
        if self._looking:
            self._changed.add(name)
            self._sooner = min(self._sooner, due_us)
        if due_us < self._next_due:
            self._wake.set()

    async def _start(self, timer: Timer, group: asyncio.TaskGroup) -> None:
        kind = self._message_class(timer.event)
        if kind is None:
            if timer.event not in self._unknown:
                log.warning("timer.stranded", timer=timer.name, waits_for=timer.event)
            self._unknown.add(timer.event)
            return
        await self._slots.acquire()
        if timer.name in self._changed:
            self._slots.release()
            return
        self._in_flight.add(timer.id)
        # Each begins in the order made, and a unit or a call is handed over before the first wait.
        group.create_task(self._fire(timer, kind))

    async def _fire(self, timer: Timer, kind: type[Message]) -> None:
        again = math.inf
        set_current(timer.cause)
        try:
            if issubclass(kind, Notification):
                await self._persist(lambda tx: self._tell(tx, timer))
            else:
                again = await self._ask(timer, kind)
        finally:
            self._in_flight.discard(timer.id)
            self._slots.release()
        # Only now: while it was in flight it was passed over.
        if again < math.inf:
            self._note(timer.name, again)

    def _tell(self, tx: Transaction, timer: Timer) -> None:
        if timer_rows.remove(tx, timer):
            tx.tell_raw(timer.event, timer.data)
            tx.on_commit(self._count_fired)

    async def _ask(self, timer: Timer, kind: type[Message]) -> float:
        """Ask, and take the timer away; give when to ask again where that failed."""
        try:
            await self._bus.call(timer.request(kind))
        except KSIError as error:
            return await self._handle_failure(timer, error)
        await self._persist(lambda tx: timer_rows.remove(tx, timer))
        self._count_fired()
        return math.inf

    async def _handle_failure(self, timer: Timer, error: KSIError) -> float:
        attempts = timer.attempts + 1
        final = attempts >= MAX_ATTEMPTS or _is_final(error)
        event = "timer.failed" if final else "timer.retried"
        log.warning(event, timer=timer.name, asked=timer.event, attempts=attempts, error=error.message)
        if final:
            await self._persist(lambda tx: self._give_up(tx, timer, error, attempts))
            return math.inf
        due_us = self._clock.time_us() + round(_delay_s(attempts, error) * 1e6)
        await self._persist(lambda tx: timer_rows.postpone(tx, timer, due_us, attempts))
        self._retried += 1
        return due_us

    def _give_up(self, tx: Transaction, timer: Timer, error: KSIError, attempts: int) -> None:
        if timer_rows.remove(tx, timer):
            tx.tell(
                Failed(
                    name=timer.name,
                    event=timer.event,
                    data=from_json(timer.data),
                    code=error.code,
                    error=as_stored(error.message),
                    attempts=attempts,
                )
            )
            self._letters.add_in(tx, timer_rows.letter_of(timer, error, attempts))
            tx.on_commit(self._count_failed)

    def _redrive(self, tx: Transaction, letter: DeadLetter) -> None:
        due = self._clock.time_us()
        timer_rows.set_again(tx, letter, due)
        tx.on_commit(lambda: self._note(letter.name, due))

    async def _persist(self, unit: Callable[[Transaction], T]) -> T:
        """Commit ``unit``; a full disk is waited for, since asking twice would be worse."""
        while True:
            try:
                return await self._database.write_apart(unit)
            except OperationalError as error:
                if not error.retryable:
                    raise
                log.warning("timer.deferred", error=error.message, retry_after_s=STORE_RETRY_S)
            await self._wait(asyncio.Event(), STORE_RETRY_S)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for an event, or for so long; either way it is set then."""
        alarm = self._call_later(seconds, event.set)
        try:
            await event.wait()
        finally:
            alarm.cancel()

    def _due(self, due_us: int | None, after_s: float | None) -> int:
        if due_us is not None and after_s is None:
            return due_us
        if after_s is not None and due_us is None:
            return self._clock.time_us() + round(after_s * 1e6)
        raise TypeError("a timer needs one of due_us and after_s")

    def _count_fired(self) -> None:
        self._fired += 1

    def _count_failed(self) -> None:
        self._failed += 1


def _is_final(error: KSIError) -> bool:
    """Tell whether the answer is a definite no. A bug may be gone the next time, a shutdown will be."""
    return isinstance(error, OperationalError) and not error.retryable and not isinstance(error, Cancelled)


def _delay_s(attempts: int, error: KSIError) -> float:
    # No jitter: the slots bound what fails together, and no other daemon keeps our time.
    backoff = min(2.0 ** (attempts - 1), MAX_BACKOFF_S)
    wished = error.details.get("retry_after_s")
    return max(backoff, min(wished, MAX_WISHED_S)) if isinstance(wished, int | float) else backoff
