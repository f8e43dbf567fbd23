"""Durable subscribers in the process: each goes on from a cursor of its own, whatever happened meanwhile.

What a subscriber writes and its cursor commit together, so that its effect is there once. Where it writes
nothing the cursor follows in a commit of its own, and a crash may give it the last events again.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import structlog

from ksi_common.envelope import EventEnvelope, StoredEvent
from ksi_common.errors import FailedPrecondition, InternalError, KSIError, OperationalError
from ksi_common.messages import spec_of
from ksi_daemon.assembly import Subscriber
from ksi_daemon.children import Tasks
from ksi_daemon.consumers import Consumers, rows
from ksi_daemon.consumers.burying import cause_of, letter_of
from ksi_daemon.consumers.ledger import Failures
from ksi_daemon.consumers.running import MAX_DELAY_S, STORE_RETRY_S
from ksi_daemon.consumers.wishes import SUBSCRIBER, key_of_subscriber
from ksi_daemon.database import Transaction
from ksi_daemon.dead_letters import DeadLetter
from ksi_daemon.hub import Batch
from ksi_daemon.listeners import envelope_of
from ksi_daemon.marks import Durable
from ksi_daemon.middleware import compose
from ksi_daemon.middleware.correlation import correlation
from ksi_daemon.middleware.errors import Errors
from ksi_daemon.outcomes import Failed, Outcome, Send
from ksi_daemon.queue_sink import QueueSink
from ksi_daemon.subscriptions import Interest

log = structlog.get_logger()

T = TypeVar("T")

Unit = Callable[[Transaction], T]


class DoneBefore(FailedPrecondition):
    """The event was done by an earlier attempt, whose answer did not come; nothing is done twice."""


@dataclass(slots=True, eq=False)
class _Turn:
    """One attempt at one event."""

    event: StoredEvent
    letter: int | None
    """The dead letter that is tried again; None: it is the next of the log."""
    settle: Callable[[Transaction, "_Turn"], bool]
    """Move the cursor; False where it was moved before."""
    joined: bool = False
    committed: bool = False
    error: KSIError | None = None

    @property
    def seq(self) -> int:
        assert self.event.seq is not None
        return self.event.seq

    @property
    def done(self) -> bool:
        """Tell whether there is nothing left to do about it."""
        return self.committed or self.error is None or isinstance(self.error, DoneBefore)

    def around(self, unit: Unit[T]) -> Unit[T]:
        """Make of the one unit of work of the subscriber one that moves the cursor too."""
        if self.joined:
            raise InternalError("a durable subscriber writes a second time; an event has one unit of work")
        self.joined = True

        def joined(tx: Transaction) -> T:
            if not self.settle(tx, self):
                raise DoneBefore(f"event {self.seq} was done before", reason="done_before")
            value = unit(tx)
            tx.on_commit(self._commit)
            return value

        return joined

    def answering(self, reply: object) -> Unit[object]:
        """Make the unit of one that wrote nothing."""
        del reply
        return lambda tx: self.settle(tx, self)

    def _commit(self) -> None:
        self.committed = True

    async def send(self, outcome: Outcome) -> None:
        """Hear what it failed with."""
        if isinstance(outcome, Failed):
            self.error = outcome.error


class DurableListener:
    """Give one subscriber each of its events until it is done, one after the other."""

    def __init__(
        self, subscriber: Subscriber, durable: Durable, consumers: Consumers, tasks: Tasks, errors: Errors
    ) -> None:
        self._subscriber = subscriber
        self._durable = durable
        # What is told from here on is its own, though its row is read and written while others are served.
        self._start = consumers.subscriptions.pinned(durable.start)
        self._consumers = consumers
        self._tasks = tasks
        self._deliver = compose((correlation, errors), self._call)
        self._read = subscriber.event.__pydantic_validator__.validate_json
        self._name = key_of_subscriber(subscriber.plugin, subscriber.name)
        self._id = 0
        self._failures: dict[int, Failures] = {}
        self._redriven: dict[int, DeadLetter] = {}
        self._done = 0
        """The cursor as it is to be; on disk a commit later."""
        self._saved = 0
        self._work = asyncio.Event()
        self._sink = QueueSink()
        consumers.on_redrive(self._name, self._restore)

    async def run(self) -> None:
        """Listen until cancelled."""
        self._sink = QueueSink()
        self._redriven.clear()
        self._done = self._saved = 0
        event = spec_of(self._subscriber.event).name
        opened = await self._consumers.open_subscriber(
            self._name, event, start=self._start, max_attempts=self._durable.max_attempts
        )
        self._id, self._failures = opened.row.id, dict(opened.failures)
        self._done = self._saved = opened.row.position
        for letter in opened.redriven:
            self._redriven.setdefault(letter.seq or 0, letter)
        for letter in tuple(self._redriven.values()):
            self._give_again(letter)
        subscriptions = self._consumers.subscriptions
        interest = Interest((event,), start={"cursor": subscriptions.log.cursor(self._done)})
        filling = self._tasks.create_task(self._sink.fill(subscriptions, interest))
        saving = self._tasks.create_task(self._save())
        try:
            while True:
                told, _ = await self._sink.take()
                await self._handle(told)
                missed = self._redriven.get(told.seq or 0)
                if missed is not None:  # its letter came while the event itself was tried
                    self._give_again(missed)
        finally:
            filling.cancel()
            saving.cancel()
            if self._done > self._saved:
                self._leave_cursor()

    def _restore(self, letter: DeadLetter) -> None:
        """Take a dead letter that is to be tried again."""
        if letter.seq is not None and letter.seq not in self._redriven:
            self._redriven[letter.seq] = letter
            self._give_again(letter)

    def _give_again(self, letter: DeadLetter) -> None:
        """Give what the cursor is past; the rest comes of the log, and is tried as its letter says."""
        if letter.seq is not None and letter.seq <= self._done:
            log_id = self._consumers.subscriptions.log.log_id
            self._sink.deliver(Batch((letter.to_event(),), letter.seq, log_id))

    async def _handle(self, event: StoredEvent) -> None:
        if event.seq is None:
            return
        letter = self._redriven.pop(event.seq, None)
        if letter is None and event.seq <= self._done:
            return
        ident = None if letter is None else letter.id
        failures = self._failures.pop(event.seq, Failures(letter=ident))
        event = event if letter is None else letter.to_event()
        while True:
            await self._wait_until(failures.due_us)
            turn = _Turn(event, ident, self._settle_in)
            await self._attempt(turn)
            if turn.done:
                await self._be_done(turn)
                return
            assert turn.error is not None
            if turn.error.details.get("reason") == "store_unavailable":  # no attempt: nothing could be done
                await asyncio.sleep(STORE_RETRY_S)
                continue
            failures = self._failed_again(failures, turn.error)
            if failures.attempts >= self._durable.max_attempts:
                await self._bury(turn, failures)
                return
            await self._persist(partial(rows.fail, consumer=self._id, seq=turn.seq, failures=failures))

    async def _attempt(self, turn: _Turn) -> None:
        envelope = envelope_of(turn.event)
        envelope.joins = turn
        await self._deliver(envelope, turn.send)

    async def _call(self, envelope: EventEnvelope, send: Send) -> None:
        del send
        notification = envelope.message = self._read(envelope.data["json"])
        await self._subscriber.call(notification, envelope)

    def _settle_in(self, tx: Transaction, turn: _Turn) -> bool:
        """Be done with an event: move the cursor past it, and forget its letter; False where that was so."""
        is_next = rows.advance(tx, self._id, turn.seq, self._consumers.clock.time_us())
        return (
            turn.letter is not None and rows.forget_letter(tx, self._id, turn.seq, turn.letter)
        ) or is_next

    async def _be_done(self, turn: _Turn) -> None:
        if turn.letter is not None and not turn.committed:
            await self._persist(turn.answering(None))
        if turn.seq <= self._done:
            return
        self._done = turn.seq
        if turn.committed or turn.letter is not None:
            self._saved = turn.seq
        else:
            self._work.set()

    async def _bury(self, turn: _Turn, failures: Failures) -> None:
        assert turn.error is not None
        letter = letter_of(
            turn.event, SUBSCRIBER, self._name, failures, reason=turn.error.code, message=turn.error.message
        )

        def unit(tx: Transaction) -> None:
            if self._settle_in(tx, turn):
                self._consumers.letters.add_in(tx, letter)

        log.warning("subscriber.gave_up", subscriber=self._name, seq=turn.seq, attempts=failures.attempts)
        await self._persist(unit, cause=cause_of(turn.event))
        if turn.seq > self._done:
            self._done = self._saved = turn.seq

    def _failed_again(self, before: Failures, error: KSIError) -> Failures:
        now = self._consumers.clock.time_us()
        delay_s = min(self._durable.retry_s * 2.0**before.attempts, MAX_DELAY_S)
        wished = error.details.get("retry_after_s")
        if isinstance(wished, int | float):
            delay_s = max(delay_s, min(float(wished), MAX_DELAY_S))
        return replace(
            before,
            attempts=before.attempts + 1,
            due_us=now + round(delay_s * 1e6),
            first_us=before.first_us or now,
        )

    async def _wait_until(self, due_us: int) -> None:
        delay_s = (due_us - self._consumers.clock.time_us()) / 1e6
        if due_us and delay_s > 0:
            await asyncio.sleep(min(delay_s, MAX_DELAY_S))  # more is of a clock that was set back since

    async def _save(self) -> None:
        """Put the cursor on disk, where no unit of work did; what is done meanwhile goes along."""
        while True:
            await self._work.wait()
            self._work.clear()
            if self._done > self._saved:
                done = self._done
                await self._persist(self._move)
                self._saved = max(self._saved, done)

    def _leave_cursor(self) -> None:
        """Hand the cursor over, to be on disk before the database is closed, if that is not so yet.

        Where it cannot be stored the last events are given again; the end that was asked for goes on.
        """
        with suppress(OperationalError):
            moved = self._consumers.database.write_apart(self._move)
            moved.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _move(self, tx: Transaction) -> None:
        rows.advance(tx, self._id, self._done, self._consumers.clock.time_us())

    async def _persist(self, unit: Unit[Any], *, cause: EventEnvelope | None = None) -> None:
        """Commit ``unit``; a full disk is waited for."""
        while True:
            try:
                await self._consumers.commit(unit, cause)
            except OperationalError as error:
                if not error.retryable:
                    raise
                log.warning("subscriber.deferred", subscriber=self._name, error=error.message)
            else:
                return
            await asyncio.sleep(STORE_RETRY_S)
