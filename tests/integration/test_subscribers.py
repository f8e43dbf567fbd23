"""Subscribers of plugins: each hears everything in order, in its own time, and none is in anybody's way."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.testing import PATIENCE_S, RunningDaemon, running_daemon

from .conftest import LogFile, WritePlugin

PROBE = """
    import asyncio
    import threading
    from collections import defaultdict

    from ksi_common.events import event
    from ksi_daemon.plugin import (
        Bus, Database, EventEnvelope, FailedPrecondition, Message, Notification, Request, Transaction,
        handler, subscriber,
    )

    class Done(Message):
        '''It is done.'''

    class Told(Notification, event="probe:told"):
        '''A number was told.'''
        n: int

    class Passed(Notification, event="probe:passed", ephemeral=True):
        '''A number passed by.'''
        n: int

    class Tell(Request[Done], event="probe:tell"):
        '''Tell numbers, in one commit.'''
        numbers: list[int]
        fail: bool = False

    class Pass(Request[Done], event="probe:pass", safe=True):
        '''Let a number pass by.'''
        n: int

    heard: dict[str, list[int]] = defaultdict(list)
    arrived = asyncio.Condition()
    opened = asyncio.Event()
    opened_in_thread = threading.Event()
    stored: list[bool] = []

    async def hear(name: str, n: int) -> None:
        async with arrived:
            heard[name].append(n)
            arrived.notify_all()

    async def wait_heard(name: str, count: int) -> list[int]:
        async with arrived:
            await arrived.wait_for(lambda: len(heard[name]) >= count)
        return heard[name]

    @handler
    async def tell(request: Tell, database: Database) -> Done:
        def unit(tx: Transaction) -> None:
            for n in request.numbers:
                tx.tell(Told(n=n))
            if request.fail:
                raise FailedPrecondition("not now")

        await database.write(unit)
        return Done()

    @handler
    async def pass_(request: Pass, bus: Bus) -> Done:
        await bus.notify(Passed(n=request.n))
        return Done()

    @subscriber
    async def fast(told: Told) -> None:
        await hear("fast", told.n)

    @subscriber
    async def slow(told: Told) -> None:
        await hear("slow began", told.n)
        await opened.wait()
        await hear("slow", told.n)

    @subscriber
    def slow_in_thread(told: Told) -> None:
        opened_in_thread.wait(10)
        heard["slow in thread"].append(told.n)

    @subscriber
    async def uneven(told: Told) -> None:
        for _ in range(told.n % 3):
            await asyncio.sleep(0)
        await hear("uneven", told.n)

    @subscriber
    async def failing(told: Told) -> None:
        await hear("failing", told.n)
        if told.n % 2:
            raise ZeroDivisionError(f"of {told.n}")

    @subscriber
    async def leaving(told: Told) -> None:
        await hear("leaving", told.n)
        raise (SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit)[told.n % 4]

    @subscriber
    async def looking(told: Told, envelope: EventEnvelope, bus: Bus) -> None:
        found = await bus.call(event.Get(event_id=envelope.event_id))
        stored.append(found.data == {"n": told.n})
        await hear("looking", told.n)

    @subscriber
    async def passing(passed: Passed) -> None:
        await hear("passing", passed.n)
"""


@pytest.fixture
async def probe(write_plugin: WritePlugin, log_file: LogFile) -> AsyncIterator[RunningDaemon]:
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(PROBE)], settings={"strict": False}) as running:
            yield running
            module().opened_in_thread.set()  # its thread is not awaited, but the next test wants its own


def module() -> Any:
    """Give the plugin as it runs in the daemon of this test."""
    return sys.modules["ksi_file_probe"]


async def heard(name: str, count: int) -> list[int]:
    """Wait until a subscriber has heard so many; give what it heard."""
    async with asyncio.timeout(PATIENCE_S):
        numbers: list[int] = await module().wait_heard(name, count)
    return list(numbers)


async def tell(ksi: RunningDaemon, *numbers: int) -> None:
    await ksi.call_raw("probe:tell", {"numbers": numbers})


async def test_a_subscriber_hears_everything_in_order(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        for n in range(0, 100, 2):
            wire.send({"event": "probe:tell", "data": {"numbers": [n, n + 1]}})
        assert {(await wire.receive())["type"] for _ in range(50)} == {"reply"}
    for name in ("fast", "uneven", "looking"):
        assert await heard(name, 100) == list(range(100))


async def test_a_slow_subscriber_holds_up_neither_the_publisher_nor_the_others(probe: RunningDaemon) -> None:
    await tell(probe, *range(50))
    assert await heard("fast", 50) == list(range(50))
    assert await heard("uneven", 50) == list(range(50))
    assert await heard("slow began", 1) == [0]
    assert module().heard["slow"] == module().heard["slow in thread"] == []
    module().opened.set()
    assert await heard("slow", 50) == list(range(50))


async def test_a_subscriber_has_one_event_at_a_time(probe: RunningDaemon) -> None:
    await tell(probe, 1, 2, 3)
    assert await heard("fast", 3) == [1, 2, 3]
    assert await heard("slow began", 1) == [1], "the second waits for the end of the first"
    module().opened.set()
    assert await heard("slow began", 3) == [1, 2, 3]


async def test_a_subscriber_that_raises_hears_the_next_event_and_harms_nobody(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    settings = {"strict": False}
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(PROBE)], settings=settings) as ksi:
            await tell(ksi, *range(8))
            for name in ("failing", "leaving", "fast"):
                assert await heard(name, 8) == list(range(8))
            assert (await ksi.call_raw("system:health"))["checks"]["plugins"]
            module().opened_in_thread.set()
    crashed = [line["error"] for line in log_file.lines("handler.crashed") if line["plugin"] == "probe"]
    assert {f"ZeroDivisionError: of {n}" for n in (1, 3, 5)} <= set(crashed)
    assert {"SystemExit: ", "KeyboardInterrupt: ", "CancelledError: "} <= set(crashed)


async def test_what_subscribers_raise_is_charged_to_their_plugin(probe: RunningDaemon) -> None:
    await tell(probe, 1, 2)
    await heard("failing", 2)
    await heard("leaving", 2)
    await tell(probe, 4)
    await heard("leaving", 3)  # by then, what it raised of 1 and 2 is counted
    await heard("failing", 2)
    details = await probe.call_raw("plugin:inspect", {"plugin_name": "probe"})
    assert details["failures"] >= 3
    assert details["status"] == "loaded"


async def test_the_publisher_is_answered_though_every_subscriber_fails(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        for n in range(20):
            assert (await wire.call("probe:tell", {"numbers": [n]}))["type"] == "reply"


async def test_what_is_durable_is_stored_before_a_subscriber_hears_of_it(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        for n in range(30):
            wire.send({"event": "probe:tell", "data": {"numbers": [n]}})
    assert await heard("looking", 30) == list(range(30))
    assert module().stored == [True] * 30


async def test_what_is_ephemeral_is_heard_and_not_stored(probe: RunningDaemon) -> None:
    for n in range(20):
        await probe.call_raw("probe:pass", {"n": n})
    assert await heard("passing", 20) == list(range(20))
    assert (await probe.call_raw("event:query", {"patterns": ["probe:passed"]}))["count"] == 0


async def test_a_unit_that_fails_is_heard_by_nobody(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        answer = await wire.call("probe:tell", {"numbers": [1, 2], "fail": True})
    assert answer["error"]["code"] == "FAILED_PRECONDITION"
    await tell(probe, 7)
    assert await heard("fast", 1) == [7]


async def test_a_slow_subscriber_does_not_hold_up_the_end(write_plugin: WritePlugin) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async with running_daemon(plugins=[write_plugin(PROBE)], settings={"strict": False}) as ksi:
            await tell(ksi, 1)
            await heard("slow began", 1)
            module().opened_in_thread.set()


async def test_a_subscriber_hears_what_clients_tell(write_plugin: WritePlugin, tmp_path: Path) -> None:
    """Two plugins: one that declares nothing hears what the other tells."""
    listener = """
        import asyncio
        from ksi_common.events.state import Changed
        from ksi_daemon.plugin import EventEnvelope, subscriber

        heard: asyncio.Queue[tuple[str, object, str]] = asyncio.Queue()

        @subscriber
        async def changed(told: Changed, envelope: EventEnvelope) -> None:
            heard.put_nowait((told.key, told.value, envelope.actor))
    """
    async with running_daemon(plugins=[write_plugin(listener, "listener")]) as ksi:
        await ksi.call_raw("state:set", {"key": "a", "value": [None]})
        async with asyncio.timeout(PATIENCE_S):
            assert await sys.modules["ksi_file_listener"].heard.get() == ("a", [None], "owner")
