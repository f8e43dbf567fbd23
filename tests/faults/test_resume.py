"""Who follows from a cursor gets the log as it is, however often the daemon is killed."""

import random
from asyncio import Event, TaskGroup, timeout
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import pytest

from tests.support.audit import Audit
from tests.support.daemon_process import DaemonProcess
from tests.support.follower import Follower
from tests.support.pipeline import call_line, expect_reply, pipeline
from tests.support.scale import scaled

KILLS = scaled(3, 20)
PUBLISHERS = 4


class Heard:
    """Keep the ids of what came, in order, and act when there are so many."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.enough = Event()
        self._number = 0

    def __call__(self, told: dict[str, Any]) -> None:
        self.ids.append(told["event_id"])
        if len(self.ids) >= self._number:
            self.enough.set()

    async def wait_for(self, number: int) -> None:
        """Wait until so many have come, all in all."""
        self._number = number
        self.enough.clear()
        if len(self.ids) < number:
            async with timeout(60):
                await self.enough.wait()


async def set_for_ever(daemon: DaemonProcess, name: str) -> None:
    """Set one key after the other; go on with the next daemon where this one is killed."""
    numbers = count()

    def lines() -> Iterator[bytes]:
        for number in numbers:
            yield call_line("state:set", {"key": f"{name}-{number % 100}", "value": number})

    while True:
        await daemon.serving.wait()
        with suppress(ConnectionError):
            await pipeline(daemon.socket, lines(), expect_reply, window=8)


@pytest.mark.slow
@pytest.mark.timeout(240 + 5 * KILLS)
async def test_a_subscriber_sees_each_event_once_and_in_order_through_kills() -> None:
    draw = random.Random(6)
    heard = Heard()
    async with DaemonProcess() as daemon, TaskGroup() as tasks:
        follower = Follower(daemon.socket, ["state:*"], heard, start="beginning")
        following = tasks.create_task(follower.follow(daemon.serving.wait))
        setting = [tasks.create_task(set_for_ever(daemon, f"p{n}")) for n in range(PUBLISHERS)]
        for _ in range(KILLS):
            await heard.wait_for(len(heard.ids) + draw.randint(1, 1000))
            await daemon.kill()
            await daemon.start()
        for task in setting:
            task.cancel()
        audit = Audit(daemon.database)
        told = [event.event_id for event in await audit.read_on() if event.event == "state:changed"]
        await heard.wait_for(len(told))
        following.cancel()
    assert follower.connections == KILLS + 1
    assert follower.gaps == 0
    assert heard.ids[: len(told)] == told


async def test_a_cursor_of_the_last_event_brings_nothing_twice() -> None:
    first, second = Heard(), Heard()
    async with DaemonProcess() as daemon:
        async with TaskGroup() as tasks:
            follower = Follower(daemon.socket, ["state:*"], first, start="beginning")
            following = tasks.create_task(follower.follow(daemon.serving.wait))
            lines = [call_line("state:set", {"key": "k", "value": n}) for n in range(10)]
            await pipeline(daemon.socket, lines, expect_reply)
            await first.wait_for(10)
            following.cancel()
        await daemon.kill()
        await daemon.start()
        async with TaskGroup() as tasks:
            resumed = Follower(daemon.socket, ["state:*"], second, start=follower.start)
            following = tasks.create_task(resumed.follow(daemon.serving.wait))
            async with timeout(40):
                await resumed.caught_up.wait()
            await pipeline(daemon.socket, [call_line("state:set", {"key": "k", "value": 10})], expect_reply)
            await second.wait_for(1)
            following.cancel()
    assert len(second.ids) == 1
    assert len({*first.ids, *second.ids}) == 11
