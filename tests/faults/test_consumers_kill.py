"""Whoever follows, however it follows, gets what it is to get, through kills of the daemon."""

import random
from asyncio import Event, Task, TaskGroup, timeout
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from ksi_common.clock import SystemClock, format_time
from tests.faults.consumer_twins import faulty
from tests.support.audit import Audit
from tests.support.consuming import Consuming, Witness
from tests.support.daemon_process import DaemonProcess
from tests.support.follower import Follower
from tests.support.pipeline import call_line, expect_reply, pipeline
from tests.support.scale import scaled
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from ksi_common.envelope import StoredEvent

EVENTS = scaled(5_000, 200_000)
KILLS = scaled(3, 20)
WRITERS = 8
PATIENCE_S = 60 + EVENTS / 1000
SILENCE_S = 10.0
"""After which nothing more comes."""


class Writers:
    """Publish until there are enough; half of them into streams, a few of which are shared."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.answered = 0
        self._daemon = daemon
        self._reached = Event()
        self._until = 0

    async def write(self, name: int, enough: int) -> None:
        """Publish, and go on with the next daemon where this one is killed."""
        numbers = count()

        def lines() -> Iterator[bytes]:
            while self.answered < enough:
                number = next(numbers)
                told: dict[str, Any] = {"event": "demo:told", "data": {"by": name, "n": number}}
                if name % 2:
                    told["stream"] = f"demo/{number % 50}"
                yield call_line("event:publish", told)

        while self.answered < enough:
            await self._daemon.serving.wait()
            with suppress(ConnectionError):
                await pipeline(self._daemon.socket, lines(), self._heard, window=16)

    async def wait_until(self, answered: int) -> None:
        """Wait until so many are stored, in all."""
        self._until = answered
        self._reached.clear()
        if self.answered < answered:
            async with timeout(PATIENCE_S):
                await self._reached.wait()

    def _heard(self, answer: bytes) -> None:
        expect_reply(answer)
        self.answered += 1
        if self.answered >= self._until:
            self._reached.set()


class Scene:
    """A daemon that is killed at work, five subscribers, and what they saw."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon
        self.lives = 0
        self.heard: dict[str, list[dict[str, Any]]] = {"beginning": [], "now": [], "time": []}
        self.since = ""
        self.named = Witness(lambda: self.lives, keyed=False)
        self.group = Witness(lambda: self.lives, keyed=True)
        self.audit = Audit(daemon.database)
        self.told: list[StoredEvent] = []
        self._following: list[Task[None]] = []

    async def play(self, events: int, kills: int) -> None:
        """Write and kill, until everybody has everything; then hold what they saw against the log."""
        draw = random.Random(4)
        writers = Writers(self.daemon)
        async with TaskGroup() as tasks:
            await self._follow(tasks)
            writing = [tasks.create_task(writers.write(name, events)) for name in range(WRITERS)]
            for number in range(kills):
                if number == kills // 2:
                    self.since = format_time(SystemClock().time_us())
                    self._begin(tasks, "time", {"time": self.since})
                await writers.wait_until(round(events * (number + draw.random()) / kills))
                await self.daemon.kill()
                self.lives += 1
                await self.daemon.start()
            for task in writing:
                await task
            self.told = [event for event in await self.audit.read_on() if event.event == "demo:told"]
            await eventually(self._is_complete, patience_s=PATIENCE_S)
            for task in self._following:
                task.cancel()
        self.check()

    def check(self) -> None:
        """Hold what everybody saw against the log."""
        told = [event.event_id for event in self.told]
        ids = {name: [item["event_id"] for item in items] for name, items in self.heard.items()}
        assert ids["beginning"] == told
        assert ids["now"] == told[-len(ids["now"]) :]
        assert ids["time"] == [event.event_id for event in self.told if event.time >= self.since]
        keys = [(event.event_id, event.stream or event.correlation_id) for event in self.told]
        self.named.check(keys)
        self.group.check(keys)

    async def _follow(self, tasks: TaskGroup) -> None:
        self._begin(tasks, "beginning", "beginning")
        now = self._begin(tasks, "now", "now")
        again = self.daemon.serving.wait
        members = [Consuming(self.daemon.socket, {"consumer": "named"}, self.named)]
        for name in "abc":
            who = {"group": "three", "consumer": name}
            members.append(Consuming(self.daemon.socket, who, self.group))
        self._following += [tasks.create_task(member.consume(again)) for member in members]
        async with timeout(PATIENCE_S):
            await now.caught_up.wait()

    def _begin(self, tasks: TaskGroup, name: str, start: str | dict[str, str]) -> Follower:
        follower = Follower(self.daemon.socket, ["demo:*"], self.heard[name].append, start=start)
        self._following.append(tasks.create_task(follower.follow(self.daemon.serving.wait)))
        return follower

    async def _is_complete(self) -> bool:
        last = self.told[-1].event_id
        followers = all(items and items[-1]["event_id"] == last for items in self.heard.values())
        consumers = all(len(each.acknowledged) >= len(self.told) for each in (self.named, self.group))
        return followers and (consumers or self._have_all())

    def _have_all(self) -> bool:
        """Tell whether consumers have all, where the answer to an acknowledgement was lost in a kill."""
        return all(len(set(each.given)) >= len(self.told) for each in (self.named, self.group))


@pytest.mark.slow
@pytest.mark.timeout(240 + 2 * PATIENCE_S)
async def test_five_subscribers_get_every_event_through_kills() -> None:
    async with DaemonProcess() as daemon:
        scene = Scene(daemon)
        await scene.play(EVENTS, KILLS)
        await scene.audit.check_integrity()
    assert len(scene.told) >= EVENTS
    assert scene.lives == KILLS


async def test_a_group_gets_everything_through_a_kill() -> None:
    """What finds out the faulty ones below is content with the daemon as it is."""
    async with DaemonProcess() as daemon:
        await _consume_through_a_kill(daemon)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("settle_what_is_read", "never came"),
        ("share_without_keys", "of the same key was in flight"),
        ("forget_what_is_done", "came again after it was acknowledged"),
    ],
)
async def test_a_daemon_whose_consumers_are_at_fault_is_found_out(fault: str, finding: str) -> None:
    async with faulty(fault) as daemon:
        with pytest.raises((AssertionError, ExceptionGroup)) as found:
            await _consume_through_a_kill(daemon)
    errors = getattr(found.value, "exceptions", [found.value])
    assert [error for error in errors if finding in str(error)] != [], errors


async def _consume_through_a_kill(daemon: DaemonProcess) -> None:
    told = [call_line("event:publish", {"event": "demo:told", "stream": f"demo/{n % 3}"}) for n in range(600)]
    life = [0]
    witness = Witness(lambda: life[0], keyed=True)
    await pipeline(daemon.socket, told, expect_reply)
    await _consume_for_a_while(daemon, witness, 40)
    await daemon.kill()
    await daemon.start()
    life[0] += 1
    await _consume_for_a_while(daemon, witness, 600)
    log = await Audit(daemon.database).read_on()
    witness.check([(event.event_id, event.stream or "") for event in log if event.event == "demo:told"])


async def _consume_for_a_while(daemon: DaemonProcess, witness: Witness, number: int) -> None:
    """Have two members consume until so many are given, or nothing more comes."""
    until = len(set(witness.given)) + number
    async with TaskGroup() as tasks:
        members = [
            Consuming(daemon.socket, {"group": "g", "consumer": name, "max_inflight": 8}, witness)
            for name in "ab"
        ]
        consuming = [tasks.create_task(member.consume(daemon.serving.wait)) for member in members]
        with suppress(TimeoutError):
            while len(set(witness.given)) < min(until, 600):
                witness.changed.clear()
                async with timeout(SILENCE_S):
                    await witness.changed.wait()
        for task in consuming:
            task.cancel()
