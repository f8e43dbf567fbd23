"""The consumers of this daemon: opened when somebody follows, closed when nobody does."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from typing import Any, Final

import structlog

from ksi_common.clock import Clock, parse_time
from ksi_common.envelope import EventEnvelope, reset_current, set_current
from ksi_common.errors import FailedPrecondition, InternalError, InvalidArgument, NotFound
from ksi_common.ids import new_id
from ksi_common.records import record
from ksi_daemon.children import Tasks
from ksi_daemon.consumers import rows
from ksi_daemon.consumers.lag import lag_of
from ksi_daemon.consumers.ledger import Failures, Ledger, Member
from ksi_daemon.consumers.rows import ConsumerRow
from ksi_daemon.consumers.running import Running
from ksi_daemon.consumers.seats import Refusal, Seat
from ksi_daemon.consumers.wishes import KINDS, SUBSCRIBER, Key, Wish, fits
from ksi_daemon.cursors import parse_cursor
from ksi_daemon.database import Database, Transaction
from ksi_daemon.dead_letters import DatabaseDeadLetters, DeadLetter
from ksi_daemon.eventlog import Place
from ksi_daemon.subscriptions import Sink, Subscriptions
from ksi_daemon.supervisor import attempt_async

log = structlog.get_logger()

MAX_INFLIGHT: Final = 64
MAX_ATTEMPTS: Final = 5


@record
class Opened:
    """A consumer as it was left."""

    row: ConsumerRow
    done: list[int] = field(default_factory=list)
    """Beyond the position."""
    failures: dict[int, Failures] = field(default_factory=dict)
    redriven: list[DeadLetter] = field(default_factory=list)


@record
class ConsumerState:
    """How a consumer fares."""

    row: ConsumerRow
    lag: int
    age_s: float
    waiting_again: int
    dead_letters: int
    members: Sequence[Member]


@record
class ConsumerStatistics:
    """Figures of now."""

    running: int
    members: int
    in_flight: int


class Consumers:
    """Follow under a name, say what is done, and look at how far everyone is."""

    def __init__(
        self,
        database: Database,
        subscriptions: Subscriptions,
        letters: DatabaseDeadLetters,
        clock: Clock,
        tasks: Tasks,
        *,
        stopping: Callable[[], bool],
    ) -> None:
        self.database = database
        self.subscriptions = subscriptions
        self.letters = letters
        self.clock = clock
        self._tasks = tasks
        self._stopping = stopping
        self._running: dict[Key, Running] = {}
        self._opening: dict[Key, list[DeadLetter]] = {}
        self._turn = asyncio.Lock()
        self._restorers: dict[str, Callable[[DeadLetter], None]] = {}
        for kind in KINDS:
            letters.offer(kind, self._redrive)

    @property
    def statistics(self) -> ConsumerStatistics:
        """Give figures."""
        running = self._running.values()
        return ConsumerStatistics(
            len(running), sum(len(one.seats) for one in running), sum(one.ledger.in_flight for one in running)
        )

    async def follow(self, wish: Wish, sink: Sink) -> None:
        """Feed ``sink`` until cancelled, or until another takes its place.

        A cursor that begins "now" begins when this is called, not when it is made.
        """
        wish = replace(wish, start=self.subscriptions.pinned(wish.start))
        running = await self._open(wish)
        name = wish.consumer or new_id()
        member = Member(name, wish.max_inflight or MAX_INFLIGHT)
        seat = Seat(member, sink, wish.automatic, ack_wait_s=wish.ack_wait_s)
        running.join(seat)
        try:
            await _keep_going(running, seat)
        finally:
            # What a stop of the daemon takes from a member is not that member's doing.
            running.leave(seat, lost=not self._stopping())
            if not running.seats:
                running.close()

    async def report(self, key: Key, cursors: Sequence[str], refusal: Refusal | None) -> int:
        """Take what is said of events; give how many it was about, once that is on disk."""
        seqs = [self._seq(cursor) for cursor in cursors]
        while (running := self._running.get(key)) is not None:
            if not running.closing:
                return await running.report(seqs, refusal)
            await running.ended.wait()  # or what it notes of its last members would undo this
        return await self.database.write_apart(partial(self._report_in, key=key, seqs=seqs, refusal=refusal))

    async def delete(self, kind: str, name: str) -> None:
        """Forget a consumer; raise NotFound where there is none."""
        if kind == SUBSCRIBER and name in self._restorers:
            raise FailedPrecondition(f"a plugin that is loaded has the subscriber {name}", reason="loaded")

        def unit(tx: Transaction) -> None:
            row = rows.find(tx, kind, name)
            if row is None:
                raise _unknown((kind, name), [other for other in KINDS if rows.find(tx, other, name)])
            tx.execute(
                "UPDATE dead_letters SET state = 'dead' WHERE state = 'redriven' AND id IN "
                "(SELECT letter FROM consumer_events WHERE consumer = ?)",
                (row.id,),
            )
            rows.delete(tx, kind, name)

        async with self._turn:
            await self._end(
                (kind, name), NotFound(f"the {kind} {name} was deleted", reason="consumer_deleted")
            )
            await self.database.write(unit)

    async def listed(self, kind: str | None, name: str | None) -> Sequence[ConsumerState]:
        """Tell how consumers fare."""
        dead = await self.letters.counts()
        return [await self._state(row, dead) for row in await rows.listed(self.database, kind, name)]

    async def open_subscriber(
        self, name: str, event: str, *, start: str | Mapping[str, Any], max_attempts: int
    ) -> Opened:
        """Give the cursor of a durable subscriber; made where there is none."""
        wish = Wish(patterns=(event,), start=start, max_attempts=max_attempts)
        row, gap = await self._row(wish, (SUBSCRIBER, name))
        if gap is not None:
            log.warning("subscriber.gap", subscriber=name, **gap)
        return await self._read_events(row)

    async def commit(self, unit: Callable[[Transaction], object], cause: EventEnvelope | None) -> None:
        """Commit a unit of work with nothing, or ``cause``, as the cause of what it tells."""
        before = set_current(cause)
        try:
            done = self.database.write_apart(unit)
        finally:
            reset_current(before)
        await done

    def on_redrive(self, name: str, restore: Callable[[DeadLetter], None]) -> None:
        """Have ``restore`` called with dead letters of a durable subscriber, to try them again."""
        self._restorers[name] = restore

    async def _open(self, wish: Wish) -> Running:
        async with self._turn:
            running = self._running.get(wish.key)
            if running is not None and not running.closing and fits(running.row, wish):
                return running
            if running is not None:
                await self._make_way(running, wish)
            self._opening[wish.key] = []
            try:
                running = await self._load(wish)
                for letter in self._opening[wish.key]:
                    running.restore(letter)
            finally:
                del self._opening[wish.key]
            self._running[wish.key] = running
            self._tasks.create_task(self._run(wish.key, running))
            return running

    async def _run(self, key: Key, running: Running) -> None:
        try:
            error = await attempt_async(running.run)
        finally:
            del self._running[key]
            running.ended.set()
        if error is not None:
            log.error("consumer.crashed", consumer=key[1], error=repr(error), exc_info=error)
            running.fail(InternalError(f"the {key[0]} {key[1]} failed", hint="the daemon's log says why"))

    async def _make_way(self, running: Running, wish: Wish) -> None:
        """Close what is there under other patterns, unless others follow it."""
        others = [seat.member.name for seat in running.seats.values() if seat.member.name != wish.consumer]
        if others and not running.closing:
            raise FailedPrecondition(
                f"others follow {wish.key[0]} {wish.key[1]} by other patterns",
                reason="other_patterns",
                patterns=list(running.row.patterns),
                members=others[:16],
            )
        await self._end(
            wish.key,
            FailedPrecondition(f"{wish.key[1]!r} is followed by other patterns now", reason="taken_over"),
        )

    async def _end(self, key: Key, error: FailedPrecondition | NotFound) -> None:
        running = self._running.get(key)
        if running is not None:
            running.fail(error)
            for seat in tuple(running.seats.values()):
                running.leave(seat, lost=False)
            running.close()
            await running.ended.wait()

    async def _load(self, wish: Wish) -> Running:
        row, gap = await self._row(wish, wish.key)
        opened = await self._read_events(row)
        ledger = Ledger(row.position, shared=row.kind == "group", done=opened.done, failures=opened.failures)
        running = Running(
            row, ledger, database=self.database, subscriptions=self.subscriptions,
            letters=self.letters, clock=self.clock,
        )  # fmt: skip
        running.gap = gap
        for letter in opened.redriven:
            ledger.restore(
                letter.to_event(), opened.failures.get(letter.seq or 0) or Failures(letter=letter.id)
            )
        return running

    async def _read_events(self, row: ConsumerRow) -> Opened:
        opened = Opened(row)
        for event in await rows.events(self.database, row.id):
            if event.done:
                opened.done.append(event.seq)
            else:
                opened.failures[event.seq] = event.failures
            if event.failures.letter is not None:
                opened.redriven.append(await self.letters.get(event.failures.letter))
        return opened

    async def _row(self, wish: Wish, key: Key) -> tuple[ConsumerRow, Mapping[str, Any] | None]:
        """Give the row of a consumer, made or changed as wished, and what it cannot be given any more."""
        kind, name = key
        row = await rows.load(self.database, kind, name)
        gap: Mapping[str, Any] | None = None
        if row is None:
            position, gap = await self.start_of(wish.start)
        else:
            known = min(row.position, self.subscriptions.hub.head)
            position, gap = _place(self.subscriptions.log.beginning_after(known))
        if row is None or not fits(row, wish):
            default = MAX_ATTEMPTS if row is None else row.max_attempts
            await self.create(
                kind, name, patterns=wish.patterns, stream=wish.stream, position=position,
                max_attempts=wish.max_attempts or default,
            )  # fmt: skip
            row = await rows.load(self.database, kind, name)
        assert row is not None
        return replace(row, position=position), gap

    async def create(
        self, kind: str, name: str, *, patterns: Sequence[str], stream: str | None, position: int,
        max_attempts: int,
    ) -> None:  # fmt: skip
        """Write a consumer, or change what it wants."""
        unit = partial(
            rows.create, kind=kind, name=name, patterns=patterns, stream=stream, position=position,
            max_attempts=max_attempts, now_us=self.clock.time_us(),
        )  # fmt: skip
        await self.database.write_apart(unit)

    async def start_of(self, start: str | Mapping[str, Any]) -> tuple[int, Mapping[str, Any] | None]:
        """Give the position that a new consumer begins at, and what it cannot be given."""
        head = self.subscriptions.hub.head
        match start:
            case {"time": str(text)}:
                time_us = parse_time(text)
                if time_us > self.clock.time_us():
                    raise InvalidArgument(
                        f"a cursor that is kept begins with what there is, and {text} is still to come",
                        reason="start_in_future",
                        field="start",
                        hint='begin "now", or follow without a name',
                    )
                return await self.subscriptions.log.position_at(time_us), None
            case {"cursor": str(text)}:
                return _place(self.subscriptions.log.locate(text, head))
            case "beginning":
                return _place(self.subscriptions.log.beginning)
        return head, None

    async def _state(self, row: ConsumerRow, dead: Mapping[Key, int]) -> ConsumerState:
        lag, age_s = await lag_of(self.database, row, self.subscriptions.hub.head, self.clock.time_us())
        again = await self.database.read(
            "SELECT count(*) FROM consumer_events WHERE consumer = ? AND done = 0", (row.id,)
        )
        running = self._running.get((row.kind, row.name))
        members = tuple(seat.member for seat in running.seats.values()) if running else ()
        return ConsumerState(row, lag, age_s, again[0][0], dead.get((row.kind, row.name), 0), members)

    def _report_in(self, tx: Transaction, key: Key, seqs: Sequence[int], refusal: Refusal | None) -> int:
        """Take what is said of events while nobody follows."""
        row = rows.find(tx, *key)
        if row is None:
            raise _unknown(key)
        now = self.clock.time_us()
        if refusal is not None:
            return 0  # all were given back when the last member went
        number = 0
        for seq in dict.fromkeys(seqs):
            if rows.is_open(tx, row, seq):
                number += 1
                rows.settle(tx, row.id, (seq,), row.position, now)
        return number

    def _redrive(self, tx: Transaction, letter: DeadLetter) -> None:
        row = rows.find(tx, letter.origin, letter.name)
        if row is None or letter.seq is None:
            raise FailedPrecondition(
                f"the {letter.origin} {letter.name} is gone", reason="no_consumer", id=letter.id
            )
        rows.fail(tx, row.id, letter.seq, Failures(letter=letter.id))
        tx.on_commit(lambda: self._restore(letter))

    def _restore(self, letter: DeadLetter) -> None:
        key = (letter.origin, letter.name)
        if key in self._opening:
            self._opening[key].append(letter)
        elif letter.origin == SUBSCRIBER and letter.name in self._restorers:
            self._restorers[letter.name](letter)
        elif key in self._running:
            self._running[key].restore(letter)

    def _seq(self, text: str) -> int:
        place = self.subscriptions.log.locate(text, self.subscriptions.hub.head)
        if place.gap not in (None, "horizon"):
            raise InvalidArgument(f"{text!r} names no event of this log", reason=place.gap)
        return parse_cursor(text).seq


def _place(place: Place) -> tuple[int, Mapping[str, Any] | None]:
    """Give a position, and what cannot be had before it."""
    lost = {"lost": place.lost} if place.lost else {}
    return place.seq, None if place.gap is None else {"reason": place.gap, **lost}


async def _keep_going(running: Running, seat: Seat) -> None:
    """Wait until the member is to follow no more; when it has read what it has, have it given more."""
    while seat.error is None:
        await seat.wake.wait()
        seat.wake.clear()
        if seat.stalled and seat.error is None:
            await seat.sink.wait_drained()
            seat.stalled = False
            running.dispatch()
    raise seat.error


def _unknown(key: Key, kinds: Sequence[str] = ()) -> NotFound:
    """Say that there is none; ``kinds``: those of which there is one of that name."""
    hint = f"there is a {kinds[0]}: give kind={kinds[0]}" if kinds else "event:consumers lists what there is"
    return NotFound(f"there is no {key[0]} {key[1]!r}", hint=hint)
