"""A consumer that somebody follows: events come from the log, go to members, and are settled in commits."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from ksi_common.clock import Clock
from ksi_common.envelope import set_current
from ksi_common.errors import KSIError, OperationalError, Unavailable
from ksi_common.frames import MarkKind
from ksi_daemon.consumers import rows
from ksi_daemon.consumers.burying import cause_of, letter_of
from ksi_daemon.consumers.ledger import Entry, Failures, Ledger, Member
from ksi_daemon.consumers.rows import ConsumerRow
from ksi_daemon.consumers.seats import Refusal, Report, Seat, refuse, rendered, taken_over
from ksi_daemon.cursors import parse_cursor
from ksi_daemon.database import Database, Transaction
from ksi_daemon.dead_letters import DeadLetter, DeadLetters
from ksi_daemon.hub import Batch
from ksi_daemon.subscriptions import Interest, Subscriptions
from ksi_daemon.supervisor import attempt_async

log = structlog.get_logger()

FIRST_DELAY_S: Final = 1.0
MAX_DELAY_S: Final = 60.0
STORE_RETRY_S: Final = 1.0
"""How long a full disk is waited for, each time."""


class Running:
    """One consumer at work. Everything but ``run`` is synchronous; what is said is on disk a commit later."""

    def __init__(
        self,
        row: ConsumerRow,
        ledger: Ledger,
        *,
        database: Database,
        subscriptions: Subscriptions,
        letters: DeadLetters,
        clock: Clock,
    ) -> None:
        self.row = row
        self.ledger = ledger
        self.seats: dict[Member, Seat] = {}
        self.gap: Mapping[str, Any] | None = None
        """What to tell the first member of what cannot be had any more."""
        self._database = database
        self._subscriptions = subscriptions
        self._letters = letters
        self._clock = clock
        self._reports: list[Report] = []
        self._lost: dict[int, Entry] = {}
        self._dying: dict[int, tuple[Entry, Refusal]] = {}
        self.ended = asyncio.Event()
        self._work = asyncio.Event()
        self._drained = asyncio.Event()
        self._caught_up = False
        self._closing = False
        self._alarm: asyncio.TimerHandle | None = None
        self._saved_position = row.position

    # What its members do.

    def join(self, seat: Seat) -> None:
        """Take a member in, in the place of one of the same name."""
        for other in tuple(self.seats.values()):
            if other.member.name == seat.member.name:
                other.end(taken_over(seat.member.name))
                self.leave(other, lost=True)
        self.seats[seat.member] = seat
        self.ledger.join(seat.member)
        if self.gap is not None:
            seat.sink.mark("gap", self._cursor(), self.gap)
            self.gap = None
        self.dispatch()

    def leave(self, seat: Seat, *, lost: bool) -> None:
        """Let a member go; may be called twice. ``lost``: what it had counts as tried in vain."""
        if self.seats.pop(seat.member, None) is None:
            return
        self._note_lost(self.ledger.leave(seat.member, lost=lost))
        self.dispatch()

    def _note_lost(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._lost[entry.seq] = entry
            if entry.failures.attempts >= self.row.max_attempts:
                self.ledger.let_die(entry)
            self._work.set()

    def report(self, seqs: Sequence[int], refusal: Refusal | None) -> "asyncio.Future[int]":
        """Take what is said of events; the future gives how many it was about, once that is on disk."""
        now_s = self._clock.monotonic()
        for seq in seqs:
            entry = self.ledger.entries.get(seq)
            if entry is not None and entry.member is not None:
                self.seats[entry.member].hear(now_s)
        report = Report(seqs, asyncio.get_running_loop().create_future(), refusal)
        self._reports.append(report)
        self._work.set()
        return report.settled

    def restore(self, letter: DeadLetter) -> None:
        """Give the event of a dead letter again."""
        self.ledger.restore(letter.to_event(), Failures(letter=letter.id))
        self.dispatch()

    def close(self) -> None:
        """End, once what was said is on disk."""
        self._closing = True
        self._work.set()

    def fail(self, error: KSIError) -> None:
        """Have every member follow no more."""
        for seat in tuple(self.seats.values()):
            seat.end(error)

    @property
    def closing(self) -> bool:
        """Tell whether it takes no more members."""
        return self._closing

    # What its feed does: it is the Sink of a subscription.

    @property
    def full(self) -> bool:
        """Tell whether it holds as much as it may."""
        return self.ledger.full

    def deliver(self, batch: Batch) -> None:
        """Take events of the log."""
        self.ledger.read(batch.events, batch.head)
        self.dispatch()

    def mark(self, kind: MarkKind, cursor: str, fields: Mapping[str, Any]) -> None:
        """Take note of how far was read, and pass it on."""
        self.ledger.skip_to(parse_cursor(cursor).seq)
        self._work.set()
        self._caught_up = self._caught_up or kind == "caught_up"
        if kind != "caught_up":
            for seat in self.seats.values():
                seat.sink.mark(kind, self._cursor(), fields)
        self.dispatch()

    async def wait_drained(self) -> None:
        """Return when it holds half of what it may."""
        while self.ledger.half_full:
            self._drained.clear()
            await self._drained.wait()

    # What it does itself.

    async def run(self) -> None:
        """Feed the members until closed; where the feed breaks, they hear of it."""
        set_current(None)  # whoever was the first to follow is not the cause of what happens here
        interest = Interest(
            self.row.patterns,
            self.row.stream,
            {"cursor": self._subscriptions.log.cursor(self.ledger.read_to)},
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                feeding = tasks.create_task(self._feed(interest))
                while not (self._closing and not self._reports and not self._lost and not self._dying):
                    await self._work.wait()
                    self._work.clear()
                    await self._settle()
                feeding.cancel()
        finally:
            refuse(self._reports, _closed())  # what came while it failed
            if self._alarm is not None:
                self._alarm.cancel()
        self.fail(_closed())

    async def _feed(self, interest: Interest) -> None:
        error = await attempt_async(lambda: self._subscriptions.follow(interest, self))
        if error is not None:
            log.error("consumer.broken", consumer=self.row.name, error=repr(error))
        self.fail(Unavailable("the consumer cannot read the log", reason="broken"))
        self.close()

    def dispatch(self) -> None:
        """Give members what they may have."""
        given: dict[Member, list[Entry]] = {}
        now_us, now_s = self._clock.time_us(), self._clock.monotonic()
        self._take_back_overdue(now_s)
        for member, entry in self.ledger.give(now_us, lambda member: self.seats[member].has_room()):
            if len(member.has) == 1:
                self.seats[member].heard_s = now_s
            given.setdefault(member, []).append(entry)
        for member, entries in given.items():
            self._hand_over(self.seats[member], entries)
        if self._caught_up:
            for seat in self.seats.values():
                if not seat.told_caught_up and not self.ledger.has_ready:
                    seat.told_caught_up = True
                    seat.sink.mark("caught_up", self._cursor(), {})
        self._set_alarm()

    def _take_back_overdue(self, now_s: float) -> None:
        """Have what members had for too long, without a word of any of it, given again."""
        for seat in self.seats.values():
            overdue_s = seat.overdue_in_s(now_s)
            if overdue_s is not None and overdue_s <= 0:
                log.warning("consumer.overdue", consumer=self.row.name, member=seat.member.name)
                seat.member.silent = True
                self._note_lost(self.ledger.take_back(seat.member, lost=True))

    def _hand_over(self, seat: Seat, entries: Sequence[Entry]) -> None:
        events = [rendered(entry, self._subscriptions.log.cursor(entry.seq)) for entry in entries]
        seat.sink.deliver(Batch(events, entries[-1].seq, self._subscriptions.log.log_id))
        if seat.sink.full:
            seat.stall()
        if seat.automatic:
            self.report([entry.seq for entry in entries], None)

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        now_s, due_us = self._clock.monotonic(), self.ledger.next_due_us()
        waits = [] if due_us is None else [(due_us - self._clock.time_us()) / 1e6]
        waits += [wait_s for seat in self.seats.values() if (wait_s := seat.overdue_in_s(now_s)) is not None]
        if waits and self.seats:
            delay_s = max(min(waits), 0.0)
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self.dispatch)

    async def _settle(self) -> None:
        """Put on disk what was said: in one commit, and each dead letter in its own."""
        reports, self._reports = self._reports, []
        lost, self._lost = self._lost, {}
        try:
            gone, failed, numbers = self._sort(reports, lost)
            await self._commit(gone, failed)
            for entry, refusal in tuple(self._dying.values()):
                await self._bury(entry, refusal)
            for report, number in zip(reports, numbers, strict=True):
                report.answer(number)
        except OperationalError as error:
            self._lost = {**lost, **self._lost}
            self._defer(reports, error)
            return
        finally:
            refuse(reports, _closed())
        self.dispatch()
        if not self.ledger.half_full:
            self._drained.set()

    def _defer(self, reports: Sequence[Report], error: OperationalError) -> None:
        refuse(reports, error)
        log.warning("consumer.deferred", consumer=self.row.name, error=error.message)
        if self._closing:  # nobody is left to wait: what is on disk says less, and nothing wrong
            self._lost.clear()
            self._dying.clear()
        asyncio.get_running_loop().call_later(STORE_RETRY_S, self._work.set)

    def _sort(
        self, reports: Sequence[Report], lost: Mapping[int, Entry]
    ) -> tuple[set[int], dict[int, Failures], list[int]]:
        gone: set[int] = set()
        failed: dict[int, Failures] = {}
        numbers: list[int] = []
        for report in reports:
            meant = [seq for seq in dict.fromkeys(report.seqs) if self._is_open(seq, gone, failed, report)]
            numbers.append(len(meant))
            if report.refusal is None:
                gone.update(meant)
                continue
            for seq in meant:
                entry = self.ledger.entries[seq]
                failed[seq] = self._failed_again(entry.failures, report.refusal)
                if report.refusal.give_up or failed[seq].attempts >= self.row.max_attempts:
                    self._let_die(entry, failed[seq], report.refusal)
        for seq, entry in lost.items():
            if seq in self.ledger.entries and seq not in gone and seq not in failed:
                failed[seq] = entry.failures
                if entry.failures.attempts >= self.row.max_attempts:
                    self._let_die(entry, entry.failures, _LOST)
        return gone, failed, numbers

    def _let_die(self, entry: Entry, failures: Failures, refusal: Refusal) -> None:
        entry.failures = failures
        self.ledger.let_die(entry)
        self._dying[entry.seq] = (entry, refusal)

    def _is_open(
        self, seq: int, gone: Collection[int], failed: Mapping[int, Failures], report: Report
    ) -> bool:
        if seq in gone or seq in failed or self.ledger.is_settled(seq):
            return False
        entry = self.ledger.entries.get(seq)
        if report.refusal is None:
            return entry is None or entry.place != "dying"
        return entry is not None and entry.place == "given"

    def _failed_again(self, before: Failures, refusal: Refusal) -> Failures:
        now = self._clock.time_us()
        delay_s = refusal.delay_s
        if delay_s is None:
            delay_s = min(FIRST_DELAY_S * 2.0**before.attempts, MAX_DELAY_S)
        return replace(
            before,
            attempts=before.attempts + 1,
            due_us=now + round(delay_s * 1e6),
            first_us=before.first_us or now,
        )

    async def _commit(self, gone: Collection[int], failed: Mapping[int, Failures]) -> None:
        position = self.ledger.position_without(gone)
        if not gone and not failed and position == self._saved_position:
            return
        now, ident = self._clock.time_us(), self.row.id

        def unit(tx: Transaction) -> None:
            rows.settle(tx, ident, gone, position, now)
            for seq, failures in failed.items():
                rows.fail(tx, ident, seq, failures)

        await self._database.write_apart(unit)
        self._saved_position = position
        self.ledger.settle(gone, position)
        for seq, failures in failed.items():
            entry = self.ledger.entries.get(seq)
            # Of one that was lost, or is about to die, the ledger knows already.
            if entry is not None and entry.failures is not failures:
                self.ledger.fail(seq, failures)

    async def _bury(self, entry: Entry, refusal: Refusal) -> None:
        position = self.ledger.position_without((entry.seq,))
        now, ident = self._clock.time_us(), self.row.id
        letter = letter_of(
            entry.event, self.row.kind, self.row.name, entry.failures, reason=refusal.reason,
            message=refusal.message,
        )  # fmt: skip

        def unit(tx: Transaction) -> None:
            self._letters.add_in(tx, letter)
            rows.settle(tx, ident, (entry.seq,), position, now)

        set_current(cause_of(entry.event))
        try:
            await self._database.write_apart(unit)
        finally:
            set_current(None)
        self._saved_position = position
        del self._dying[entry.seq]
        self.ledger.settle((entry.seq,), position)

    def _cursor(self) -> str:
        return self._subscriptions.log.cursor(self.ledger.position)


def _closed() -> Unavailable:
    return Unavailable("the consumer was closed", reason="closed")


_LOST: Final = Refusal(
    reason="member_lost", message="its member went away, or said nothing, each time that it had it alone"
)
