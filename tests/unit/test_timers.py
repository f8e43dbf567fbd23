"""Timers over a real database and bus, on a clock that the tests own."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import field_validator

from ksi_common.envelope import EventEnvelope, StoredEvent, current_envelope, event_context
from ksi_common.errors import (
    Cancelled,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    KSIError,
    Unavailable,
)
from ksi_common.messages import Message, Notification, Request, Stream
from ksi_daemon import timer_rows
from ksi_daemon.bus import LocalBus
from ksi_daemon.database import Database, Transaction
from ksi_daemon.database.transaction import MAX_EVENT_DATA
from ksi_daemon.dead_letters import MAX_MESSAGE, DatabaseDeadLetters
from ksi_daemon.eventlog import EventLog
from ksi_daemon.hub import Hub
from ksi_daemon.outcomes import Failed, Replied, Send
from ksi_daemon.subscriptions import Subscriptions
from ksi_daemon.timer_rows import MAX_DATA, Timer
from ksi_daemon.timers import MAX_ATTEMPTS, MAX_IN_FLIGHT, PAGE, DatabaseTimers


class Done(Message):
    pass


class Rang(Notification, event="demo:rang"):
    n: int = 0
    text: str = ""


class Flickered(Notification, event="demo:flickered", ephemeral=True):
    pass


class Ring(Request[Done], event="demo:ring"):
    n: int = 0


class Watch(Stream[Done], event="demo:watch"):
    pass


CLASSES: Mapping[str, type[Message]] = {"demo:rang": Rang, "demo:ring": Ring}


@dataclass(eq=False)
class FakeAlarm:
    when: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Wall clock, monotonic clock and alarms; time passes when a test says so."""

    def __init__(self) -> None:
        self.now_us = 1_700_000_000_000_000
        self._monotonic = 0.0
        self._alarms: list[FakeAlarm] = []
        self._armed = asyncio.Event()

    def time_us(self) -> int:
        return self.now_us

    def monotonic(self) -> float:
        return self._monotonic

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> FakeAlarm:
        alarm = FakeAlarm(self._monotonic + delay_s, callback)
        self._alarms.append(alarm)
        self._armed.set()
        return alarm

    @property
    def alarms(self) -> Sequence[FakeAlarm]:
        self._alarms = [alarm for alarm in self._alarms if not alarm.cancelled]
        return self._alarms

    def jump(self, seconds: float) -> None:
        """Set the wall clock, as a person or NTP does."""
        self.now_us += round(seconds * 1e6)

    def advance(self, seconds: float) -> None:
        self.jump(seconds)
        self._monotonic += seconds
        for alarm in self.alarms:
            if alarm.when <= self._monotonic:
                alarm.cancel()
                alarm.callback()

    async def wait_armed(self, at_most: float = math.inf) -> float:
        """Wait until somebody sleeps for that many seconds at most; give for how many."""
        async with asyncio.timeout(30):
            while not any(alarm.when - self._monotonic <= at_most for alarm in self.alarms):
                self._armed.clear()
                await self._armed.wait()
        return min(alarm.when for alarm in self.alarms) - self._monotonic


@dataclass
class World:
    """A database, a bus whose one handler is ``answer``, and the timers between them."""

    database: Database
    clock: FakeClock
    timers: DatabaseTimers
    told: "asyncio.Queue[StoredEvent]"
    committed: asyncio.Event
    asked: "asyncio.Queue[tuple[Any, EventEnvelope]]" = field(default_factory=asyncio.Queue)
    answer: Callable[[Any], Awaitable[Message]] | None = None

    async def dispatch(self, envelope: EventEnvelope, send: Send) -> None:
        self.asked.put_nowait((envelope.message, envelope))
        with event_context(envelope):
            try:
                reply = await self.answer(envelope.message) if self.answer else Done()
            except KSIError as error:
                await send(Failed(error))
            else:
                await send(Replied(reply))

    async def told_event(self) -> StoredEvent:
        async with asyncio.timeout(30):
            return await self.told.get()

    async def next_told(self) -> tuple[str, Any]:
        event = await self.told_event()
        return event.event, orjson.loads(event.data)

    async def asked_envelope(self) -> EventEnvelope:
        async with asyncio.timeout(30):
            return (await self.asked.get())[1]

    async def next_asked(self) -> int:
        async with asyncio.timeout(30):
            return int((await self.asked.get())[0].n)

    async def names(self) -> list[str]:
        return [timer.name for timer in await self.timers.list()]

    async def wait_timers(self, wanted: Callable[[Sequence[Timer]], bool]) -> None:
        """Wait for the commit after which the timers are as wanted."""
        async with asyncio.timeout(30):
            while True:
                self.committed.clear()
                if wanted(await self.timers.list()):
                    return
                await self.committed.wait()

    async def wait_gone(self, name: str) -> None:
        await self.wait_timers(lambda timers: name not in [timer.name for timer in timers])

    async def wait_due(self, after_s: float) -> None:
        """Wait until the one timer there is is due after so many seconds."""
        due = self.clock.now_us + round(after_s * 1e6)
        await self.wait_timers(lambda timers: [timer.due_us for timer in timers] == [due])


@asynccontextmanager
async def world(
    folder: Path,
    clock: FakeClock,
    *,
    classes: Mapping[str, type[Message]] = CLASSES,
    serving: bool = True,
) -> AsyncIterator[World]:
    """Build it; leaving it is a crash for what is in flight."""
    told: asyncio.Queue[StoredEvent] = asyncio.Queue()
    committed = asyncio.Event()
    hub = Hub(asyncio.get_running_loop().call_soon)

    def published(events: Sequence[StoredEvent], head: int) -> None:
        for event in events:
            told.put_nowait(event)
        committed.set()

    database = Database(
        folder / "ksi.db", backups=folder / "b", clock=clock, published=published, failed=lambda _: None
    )
    async with database, asyncio.TaskGroup() as tasks:
        database.start()
        bus = LocalBus(
            lambda: made.dispatch,
            database=database,
            hub=hub,
            subscriptions=Subscriptions(hub, EventLog(database)),
            clock=clock,
            tasks=tasks,
        )
        timers = DatabaseTimers(
            database,
            bus,
            clock,
            letters=DatabaseDeadLetters(database, clock),
            message_class=classes.get,
        )
        made = World(database, clock, timers, told, committed)
        serve = tasks.create_task(timers.serve()) if serving else None
        yield made
        if serve is not None:
            serve.cancel()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def w(tmp_path: Path, clock: FakeClock) -> AsyncIterator[World]:
    async with world(tmp_path, clock) as made:
        yield made


def failing(error: KSIError) -> Callable[[Any], Awaitable[Message]]:
    async def answer(request: Any) -> Message:
        raise error

    return answer


@contextmanager
def working_for() -> Iterator[EventEnvelope]:
    envelope = EventEnvelope("demo:asked", {}, "the-event", "the-correlation", actor="agent-7", hop=30)
    with event_context(envelope):
        yield envelope


async def test_a_notification_is_told_when_its_time_has_come(w: World) -> None:
    assert await w.timers.schedule("t", Rang(n=1), after_s=10)
    await w.clock.wait_armed()
    w.clock.advance(9.999)
    assert w.told.empty()
    w.clock.advance(0.001)
    assert await w.next_told() == ("demo:rang", {"n": 1, "text": ""})
    assert await w.names() == []
    assert w.timers.statistics.fired == 1


async def test_a_request_is_asked_when_its_time_has_come_and_then_gone(w: World) -> None:
    await w.timers.schedule("t", Ring(n=1), after_s=10)
    w.clock.advance(10)
    assert await w.next_asked() == 1
    await w.wait_gone("t")
    assert w.timers.statistics.fired == 1
    assert w.told.empty()


async def test_what_is_due_in_the_past_is_fired_at_once(w: World) -> None:
    await w.timers.schedule("t", Rang(n=1), due_us=0)
    assert await w.next_told() == ("demo:rang", {"n": 1, "text": ""})


async def test_an_earlier_timer_wakes_before_the_one_that_is_slept_for(w: World) -> None:
    await w.timers.schedule("late", Rang(n=2), after_s=50)
    assert await w.clock.wait_armed() > 10
    await w.timers.schedule("early", Rang(n=1), after_s=1)
    w.clock.advance(1)
    assert (await w.next_told())[1]["n"] == 1
    assert await w.names() == ["late"]


async def test_there_is_one_alarm_however_many_timers(w: World) -> None:
    for n in range(20):
        await w.timers.schedule(f"t{n}", Rang(n=n), after_s=10 + n)
    await w.clock.wait_armed()
    assert len(w.clock.alarms) == 1


async def test_one_that_is_set_while_the_due_are_read_fires_before_what_is_later(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_read, is_set, nearest = asyncio.Event(), asyncio.Event(), timer_rows.nearest

    async def read_early(*args: Any, **how: Any) -> Sequence[Timer]:
        found = await nearest(*args, **how)
        if not has_read.is_set():
            has_read.set()
            await is_set.wait()
        return found

    await w.timers.schedule("last", Rang(n=3), after_s=30)
    await w.clock.wait_armed()
    monkeypatch.setattr(timer_rows, "nearest", read_early)
    await w.timers.schedule("first", Rang(n=1), after_s=10)
    await has_read.wait()
    await w.timers.schedule("between", Rang(n=2), after_s=20)
    w.clock.advance(60)
    is_set.set()
    assert [(await w.next_told())[1]["n"] for _ in range(3)] == [1, 2, 3]


async def test_timers_fire_in_order_of_time_then_of_setting(w: World) -> None:
    for name, n, due in (("c", 3, 30), ("a", 1, 10), ("b2", 4, 30), ("b", 2, 20)):
        await w.timers.schedule(name, Rang(n=n), after_s=due)
    w.clock.advance(60)
    assert [(await w.next_told())[1]["n"] for _ in range(4)] == [1, 2, 3, 4]


async def test_more_than_a_page_is_due_and_all_are_fired_in_order(w: World) -> None:
    count = 3 * PAGE + 1

    def unit(tx: Transaction) -> None:
        for n in range(count):
            w.timers.schedule_in(tx, f"t{n}", Rang(n=n), due_us=n)

    await w.database.write(unit)
    assert [(await w.next_told())[1]["n"] for _ in range(count)] == list(range(count))
    assert await w.names() == []


async def test_setting_a_name_again_replaces_its_timer(w: World) -> None:
    await w.timers.schedule("t", Rang(n=1), after_s=10)
    assert await w.timers.schedule("t", Rang(n=2), after_s=20)
    w.clock.advance(10)
    assert await w.clock.wait_armed() <= 10
    assert w.told.empty()
    w.clock.advance(10)
    assert (await w.next_told())[1]["n"] == 2


async def test_without_replace_the_timer_that_stands_is_left(w: World) -> None:
    assert await w.timers.schedule("t", Rang(n=1), after_s=10, replace=False)
    assert not await w.timers.schedule("t", Rang(n=2), after_s=5, replace=False)
    w.clock.advance(10)
    assert (await w.next_told())[1]["n"] == 1


async def test_a_cancelled_timer_does_not_fire(w: World) -> None:
    await w.timers.schedule("t", Rang(n=1), after_s=10)
    await w.timers.schedule("u", Rang(n=2), after_s=10)
    assert await w.timers.cancel("t")
    assert not await w.timers.cancel("t")
    w.clock.advance(10)
    assert (await w.next_told())[1]["n"] == 2
    assert w.told.empty()


async def test_a_timer_commits_with_its_unit_or_not_at_all(w: World) -> None:
    def fail(tx: Transaction) -> None:
        w.timers.schedule_in(tx, "t", Rang(n=1), after_s=0)
        raise FailedPrecondition("no")

    def succeed(tx: Transaction) -> None:
        w.timers.schedule_in(tx, "u", Rang(n=2), after_s=0)
        tx.tell(Rang(n=3))

    with pytest.raises(FailedPrecondition):
        await w.database.write(fail)
    await w.database.write(succeed)
    assert [(await w.next_told())[1]["n"] for _ in range(2)] == [3, 2]
    assert await w.names() == []


async def test_cancelling_commits_with_its_unit(w: World) -> None:
    await w.timers.schedule("t", Rang(n=1), after_s=10)
    assert await w.database.write(lambda tx: w.timers.cancel_in(tx, "t"))
    assert await w.names() == []


async def test_timers_are_listed_by_the_beginning_of_their_name(w: World) -> None:
    for name in ("retry/b", "retry/a", "retries", "other", "retry/ü"):
        await w.timers.schedule(name, Ring(n=1), after_s=10)
    listed = await w.timers.list("retry/")
    assert [timer.name for timer in listed] == ["retry/a", "retry/b", "retry/ü"]
    assert listed[0].event == "demo:ring"
    assert listed[0].due_us == w.clock.now_us + 10_000_000
    assert [timer.name for timer in await w.timers.list("retry/", after="retry/a", limit=1)] == ["retry/b"]
    assert len(await w.timers.list()) == 5


async def test_timers_survive_a_restart_and_overdue_ones_fire_once_in_order(
    tmp_path: Path, clock: FakeClock
) -> None:
    async with world(tmp_path, clock) as before:
        await before.timers.schedule("b", Rang(n=2), after_s=20)
        await before.timers.schedule("a", Rang(n=1), after_s=10)
        await before.timers.schedule("c", Rang(n=3), after_s=5000)
    clock.advance(3600)
    async with world(tmp_path, clock) as after:
        assert [(await after.next_told())[1]["n"] for _ in range(2)] == [1, 2]
        assert await after.names() == ["c"]
    async with world(tmp_path, clock) as again:
        await clock.wait_armed()
        assert again.told.empty()


async def test_a_request_in_flight_at_a_crash_is_asked_again(tmp_path: Path, clock: FakeClock) -> None:
    async def hang(request: Any) -> Message:
        await asyncio.Event().wait()
        return Done()

    async with world(tmp_path, clock) as before:
        before.answer = hang
        await before.timers.schedule("t", Ring(n=1), after_s=1)
        clock.advance(1)
        assert await before.next_asked() == 1
        assert before.timers.statistics.in_flight == 1
    async with world(tmp_path, clock) as after:
        assert await after.next_asked() == 1
        await after.wait_gone("t")
    async with world(tmp_path, clock) as again:
        await clock.wait_armed()
        assert again.asked.empty()


async def test_a_request_in_flight_is_not_asked_a_second_time(w: World) -> None:
    release = asyncio.Event()

    async def wait(request: Any) -> Message:
        if request.n == 1:
            await release.wait()
        return Done()

    w.answer = wait
    await w.timers.schedule("slow", Ring(n=1), after_s=0)
    assert await w.next_asked() == 1
    await w.timers.schedule("other", Ring(n=2), after_s=0)
    assert await w.next_asked() == 2
    release.set()
    await w.wait_gone("slow")
    await w.clock.wait_armed()
    assert w.asked.empty()


async def test_one_set_anew_by_its_own_handler_fires_again_at_its_new_time(w: World) -> None:
    """What makes a periodic timer: work and next setting commit together."""

    async def again(request: Any) -> Message:
        await w.database.write(lambda tx: w.timers.schedule_in(tx, "tick", Ring(n=request.n + 1), after_s=10))
        return Done()

    w.answer = again
    await w.timers.schedule("tick", Ring(n=1), after_s=10)
    for n in (1, 2, 3):
        w.clock.advance(10)
        assert await w.next_asked() == n
        await w.wait_due(10)


async def test_one_cancelled_by_its_own_handler_is_not_asked_again_after_a_crash(
    tmp_path: Path, clock: FakeClock
) -> None:
    """The way to exactly once: the work and the end of the timer are one unit."""
    done = asyncio.Event()
    async with world(tmp_path, clock) as before:

        async def work(request: Any) -> Message:
            await before.database.write(lambda tx: before.timers.cancel_in(tx, "t"))
            done.set()
            await asyncio.Event().wait()
            return Done()

        before.answer = work
        await before.timers.schedule("t", Ring(n=1), after_s=0)
        await done.wait()
    async with world(tmp_path, clock) as after:
        await clock.wait_armed()
        assert after.asked.empty()


async def test_what_is_cancelled_while_it_waits_for_its_turn_is_not_asked(w: World) -> None:
    release = asyncio.Event()

    async def wait(request: Any) -> Message:
        await release.wait()
        return Done()

    def unit(tx: Transaction) -> None:
        for n in range(MAX_IN_FLIGHT + 2):
            w.timers.schedule_in(tx, f"t{n}", Ring(n=n), due_us=n)

    w.answer = wait
    await w.database.write(unit)
    assert [await w.next_asked() for _ in range(MAX_IN_FLIGHT)] == list(range(MAX_IN_FLIGHT))
    assert w.asked.empty()
    assert await w.timers.cancel(f"t{MAX_IN_FLIGHT}")
    release.set()
    assert await w.next_asked() == MAX_IN_FLIGHT + 1
    await w.wait_gone(f"t{MAX_IN_FLIGHT + 1}")
    assert w.asked.empty()


async def test_a_failing_request_is_asked_again_later_and_later(w: World) -> None:
    w.answer = failing(Unavailable("not now"))
    await w.timers.schedule("t", Ring(n=1), after_s=0)
    for delay_s in (1, 2, 4):
        assert await w.next_asked() == 1
        await w.wait_due(delay_s)
        w.clock.advance(delay_s)
    w.answer = None
    assert await w.next_asked() == 1
    await w.wait_gone("t")
    assert w.timers.statistics.retried == 3
    assert w.told.empty()


async def test_attempts_outlive_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    async with world(tmp_path, clock) as before:
        before.answer = failing(Unavailable("not now"))
        await before.timers.schedule("t", Ring(n=1), after_s=0)
        await before.wait_due(1)
    async with world(tmp_path, clock) as after:
        after.answer = failing(Unavailable("not now"))
        clock.advance(1)
        await after.wait_due(2)
        assert (await after.timers.list())[0].attempts == 2


@pytest.mark.parametrize(
    "error", [Unavailable("not now"), InternalError("a bug"), Cancelled("the daemon stops")]
)
async def test_a_request_that_keeps_failing_is_given_up_and_that_is_told(w: World, error: KSIError) -> None:
    w.answer = failing(error)
    await w.timers.schedule("t", Ring(n=1), after_s=0)
    for _ in range(MAX_ATTEMPTS):
        assert await w.next_asked() == 1
        await w.wait_timers(lambda timers: all(timer.due_us > w.clock.now_us for timer in timers))
        w.clock.advance(60)
    assert await w.next_told() == (
        "timer:failed",
        {
            "name": "t",
            "event": "demo:ring",
            "data": {"n": 1},
            "code": error.code,
            "error": error.message,
            "attempts": MAX_ATTEMPTS,
        },
    )
    assert await w.names() == []
    assert w.timers.statistics.failed == 1


async def test_a_definite_no_is_final(w: World) -> None:
    w.answer = failing(InvalidArgument("never"))
    await w.timers.schedule("t", Ring(n=1), after_s=0)
    event, data = await w.next_told()
    assert (event, data["code"], data["attempts"]) == ("timer:failed", "INVALID_ARGUMENT", 1)


@pytest.mark.parametrize(
    ("said", "told"),
    [("a" * 1024 * 1024, "a" * MAX_MESSAGE), ("no file h\udce9.txt", "no file h?.txt")],
    ids=["long", "no text"],
)
async def test_whatever_a_definite_no_says_the_timer_is_given_up(w: World, said: str, told: str) -> None:
    w.answer = failing(InvalidArgument(said))
    await w.timers.schedule("t", Ring(n=1), after_s=0)
    event, data = await w.next_told()
    assert (event, data["error"]) == ("timer:failed", told)
    event, data = await w.next_told()
    assert (event, data["message"]) == ("deadletter:added", told)
    assert await w.names() == []


async def test_one_that_is_given_up_is_a_dead_letter_that_sets_it_again(w: World) -> None:
    letters: DatabaseDeadLetters = w.timers._letters  # type: ignore[assignment]
    w.answer = failing(InvalidArgument("never"))
    await w.timers.schedule("t", Ring(n=1), after_s=0)
    assert await w.next_asked() == 1
    assert (await w.next_told())[0] == "timer:failed"
    event, told = await w.next_told()
    assert (event, told["origin"], told["name"], told["reason"]) == (
        "deadletter:added", "timer", "t", "INVALID_ARGUMENT",
    )  # fmt: skip
    letter = await letters.get(told["id"])
    assert (letter.kind, letter.event, letter.data, letter.attempts) == ("message", "demo:ring", '{"n":1}', 1)
    w.answer = None
    assert await letters.redrive([letter.id]) == ([letter.id], [])
    assert await letters.redrive([letter.id]) == ([], [letter.id])
    assert await w.next_asked() == 1
    await w.wait_gone("t")


async def given_up(w: World) -> tuple[DatabaseDeadLetters, int]:
    """Have timer t fail for good; give its dead letter's number."""
    letters: DatabaseDeadLetters = w.timers._letters  # type: ignore[assignment]
    w.answer = failing(InvalidArgument("never"))
    await w.timers.schedule("t", Ring(n=1), after_s=0)
    await w.next_told()
    _, told = await w.next_told()
    return letters, told["id"]


async def test_a_dead_letter_does_not_take_the_place_of_a_timer_that_is_set(w: World) -> None:
    letters, ident = await given_up(w)
    await w.timers.schedule("t", Ring(n=2), after_s=1000)
    with pytest.raises(FailedPrecondition, match="is set anew"):
        await letters.redrive([ident])
    assert (await letters.get(ident)).state == "dead"


async def test_a_letter_that_was_edited_into_what_no_timer_holds_is_not_set_again(w: World) -> None:
    letters, ident = await given_up(w)
    await letters.edit(ident, '{"n":1,"text":"%s"}' % ("x" * (MAX_EVENT_DATA - 100)))
    with pytest.raises(FailedPrecondition, match="a timer holds 65536"):
        await letters.redrive([ident])
    await letters.edit(ident, '{"n":2}')
    assert await letters.redrive([ident]) == ([ident], [])
    assert (await w.next_told())[0] == "deadletter:edited"


async def test_an_error_says_when_to_ask_again(w: World) -> None:
    w.answer = failing(Unavailable("not now", retry_after_s=500))
    await w.timers.schedule("t", Ring(n=1), after_s=0)
    assert await w.next_asked() == 1
    await w.wait_due(500)


async def test_a_request_whose_class_no_longer_takes_it_is_given_up(tmp_path: Path, clock: FakeClock) -> None:
    async with world(tmp_path, clock, serving=False) as before:
        await before.timers.schedule("t", Rang(n=1, text="old"), after_s=0)
        await before.database.write(lambda tx: tx.execute("UPDATE timers SET event = 'demo:ring'").rowcount)
    async with world(tmp_path, clock) as after:
        event, data = await after.next_told()
        assert (event, data["code"]) == ("timer:failed", "INVALID_ARGUMENT")
        assert "text" in data["error"]
        assert data["data"] == {"n": 1, "text": "old"}


async def test_a_timer_of_a_plugin_that_is_not_there_waits_for_it(tmp_path: Path, clock: FakeClock) -> None:
    async with world(tmp_path, clock, classes={"demo:rang": Rang}) as before:
        await before.timers.schedule("t", Ring(n=1), after_s=0)
        await before.timers.schedule("u", Rang(n=2), after_s=0)
        assert (await before.next_told())[1]["n"] == 2
        assert before.timers.statistics.unknown == ["demo:ring"]
        assert await before.names() == ["t"]
        assert await clock.wait_armed() == 60
    async with world(tmp_path, clock) as after:
        assert await after.next_asked() == 1


async def test_a_class_declared_later_is_found_without_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    classes: dict[str, type[Message]] = {}
    async with world(tmp_path, clock, serving=False) as before:
        await before.timers.schedule("t", Ring(n=1), after_s=0)
    async with world(tmp_path, clock, classes=classes) as after:
        await clock.wait_armed()
        assert after.timers.statistics.unknown == ["demo:ring"]
        classes["demo:ring"] = Ring
        clock.advance(60)
        assert await after.next_asked() == 1


async def test_a_jump_forward_of_the_clock_is_noticed_within_a_minute(w: World) -> None:
    await w.timers.schedule("t", Rang(n=1), after_s=86_400)
    assert await w.clock.wait_armed() == 60
    w.clock.jump(86_400)
    w.clock.advance(60)
    assert (await w.next_told())[1]["n"] == 1


async def test_a_jump_backward_of_the_clock_puts_timers_off(w: World) -> None:
    await w.timers.schedule("t", Rang(n=1), after_s=10)
    await w.clock.wait_armed(at_most=10)
    w.clock.jump(-30)
    w.clock.advance(10)
    assert await w.clock.wait_armed() == 30
    assert w.told.empty()
    w.clock.advance(30)
    assert (await w.next_told())[1]["n"] == 1


async def test_what_a_timer_tells_has_the_event_that_set_it_as_its_cause(w: World) -> None:
    with working_for():
        await w.timers.schedule("t", Rang(n=1), after_s=10)
    w.clock.advance(10)
    told = await w.told_event()
    assert (told.correlation_id, told.causation_id) == ("the-correlation", "the-event")
    assert (told.actor, told.hop) == ("agent-7", 1)


async def test_what_a_timer_asks_has_the_event_that_set_it_as_its_cause(w: World) -> None:
    with working_for():
        await w.database.write(lambda tx: w.timers.schedule_in(tx, "t", Ring(n=1), after_s=10))
    w.clock.advance(10)
    envelope = await w.asked_envelope()
    assert (envelope.correlation_id, envelope.causation_id) == ("the-correlation", "the-event")
    assert (envelope.actor, envelope.hop) == ("agent-7", 1)


async def test_what_the_daemon_set_by_itself_has_a_correlation_of_its_own(w: World) -> None:
    for name in ("t", "u"):
        await w.timers.schedule(name, Ring(n=1), after_s=10)
    w.clock.advance(10)
    one, two = await w.asked_envelope(), await w.asked_envelope()
    assert one.actor == two.actor == "system"
    assert one.correlation_id != two.correlation_id
    assert current_envelope() is None


async def test_setting_a_timer_is_not_the_one_unit_that_a_handler_has(w: World) -> None:
    with working_for() as envelope:
        envelope.to_record = True
        await w.timers.schedule("t", Rang(n=1), after_s=10)
        await w.database.write(lambda tx: None)


async def test_a_full_disk_is_waited_for_and_the_request_is_not_asked_twice(w: World) -> None:
    def fill(tx: Transaction) -> None:
        tx.execute("CREATE TABLE filler (bytes)")
        tx.execute(
            "CREATE TRIGGER taking AFTER DELETE ON timers "
            "BEGIN INSERT INTO filler VALUES (zeroblob(100000)); END"
        )

    await w.timers.schedule("t", Ring(n=1), after_s=10)
    await w.database.write(fill)
    await w.database.write(lambda tx: tx.execute("PRAGMA max_page_count = 1").fetchone())
    w.clock.advance(10)
    assert await w.next_asked() == 1
    await w.clock.wait_armed(at_most=1)
    assert await w.names() == ["t"]
    await w.database.write(lambda tx: tx.execute("PRAGMA max_page_count = 1000000").fetchone())
    w.clock.advance(1)
    await w.wait_gone("t")
    assert w.asked.empty()


@pytest.mark.parametrize("message", [Flickered(), Watch()])
async def test_what_is_not_durable_is_refused(w: World, message: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await w.timers.schedule("t", message, after_s=1)
    assert refused.value.details["reason"] == "not_durable"


async def test_too_much_data_is_refused(w: World) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await w.timers.schedule("t", Rang(text="x" * MAX_DATA), after_s=1)
    assert refused.value.details["reason"] == "too_large"


@pytest.mark.parametrize("name", ["", "x" * 257])
async def test_a_name_has_a_length(w: World, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await w.timers.schedule(name, Rang(), after_s=1)


@pytest.mark.parametrize("times", [{}, {"due_us": 1, "after_s": 1.0}])
async def test_a_timer_has_one_time(w: World, times: Mapping[str, Any]) -> None:
    with pytest.raises(TypeError):
        await w.timers.schedule("t", Rang(), **times)


async def test_a_loop_is_the_default_alarm(tmp_path: Path, clock: FakeClock) -> None:
    async with world(tmp_path, clock, serving=False) as w:
        bus: Any = None
        timers = DatabaseTimers(
            w.database, bus, clock, letters=DatabaseDeadLetters(w.database, clock), message_class=CLASSES.get
        )
        async with asyncio.TaskGroup() as group:
            serve = group.create_task(timers.serve())
            await timers.schedule("t", Rang(n=1), after_s=0)
            assert (await w.next_told())[1]["n"] == 1
            serve.cancel()


async def test_a_class_that_raises_anything_is_a_failure_of_its_timer_alone(
    tmp_path: Path, clock: FakeClock
) -> None:
    class Broken(Request[Done], event="demo:broken"):
        n: int = 0

        @field_validator("n")
        @classmethod
        def look_up(cls, n: int) -> int:
            return {7: 7}[n]

    async with world(tmp_path, clock, serving=False) as before:
        await before.timers.schedule("t", Ring(n=1), after_s=0)
    async with world(tmp_path, clock, classes={"demo:ring": Broken, "demo:rang": Rang}) as after:
        await after.timers.schedule("u", Rang(n=2), after_s=0)
        assert (await after.next_told())[1]["n"] == 2
        await clock.wait_armed(1)
        assert await after.names() == ["t"]
