"""A subscriber in the process takes events from a bounded queue, in order, and learns what ended them."""

import asyncio
from asyncio import TaskGroup
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_common.envelope import StoredEvent
from ksi_common.errors import InvalidArgument
from ksi_daemon import queue_sink
from ksi_daemon.hub import Batch
from ksi_daemon.queue_sink import QueueSink, following
from ksi_daemon.subscriptions import Interest
from tests.support.following import Followed, followed


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Followed]:
    async with followed(tmp_path) as made:
        yield made


def event(event_id: str, seq: int | None = None, data: bytes = b"{}", after: int = 0) -> StoredEvent:
    return StoredEvent("a:b", data, event_id, "c", None, "owner", 0, 0, seq=seq, after=after)


def filled(sink: QueueSink, count: int, data: bytes = b"{}") -> QueueSink:
    sink.deliver(Batch([event(str(seq), seq, data) for seq in range(1, count + 1)], count, "log"))
    return sink


async def taken(sink: QueueSink, count: int) -> list[tuple[str, int]]:
    async with asyncio.timeout(30):
        return [(event.event_id, position) for event, position in [await sink.take() for _ in range(count)]]


async def test_events_are_taken_in_order_with_their_positions() -> None:
    assert await taken(filled(QueueSink(), 3), 3) == [("1", 1), ("2", 2), ("3", 3)]


async def test_the_position_of_an_ephemeral_event_is_that_of_the_log_before_it() -> None:
    sink = QueueSink()
    sink.deliver(Batch([event("e", after=4), event("5", 5)], 5, "log"))
    assert await taken(sink, 2) == [("e", 4), ("5", 5)]


async def test_taking_waits_for_an_event() -> None:
    sink = QueueSink()
    async with asyncio.timeout(30), TaskGroup() as tasks:
        task = tasks.create_task(sink.take())
        await asyncio.sleep(0)
        assert not task.done()
        filled(sink, 1)
    assert task.result()[0].event_id == "1"


async def test_it_is_full_at_its_limit_and_drained_at_half_of_it() -> None:
    sink = filled(QueueSink(limit=4), 4)
    assert sink.full
    async with asyncio.timeout(30), TaskGroup() as tasks:
        drained = tasks.create_task(sink.wait_drained())
        for left in (3, 2):
            await asyncio.sleep(0)
            assert not drained.done(), left
            await sink.take()
    assert sink.lagged == 1


async def test_a_queue_of_one_is_drained_once_it_is_empty() -> None:
    sink = filled(QueueSink(limit=1), 1)
    async with asyncio.timeout(30), TaskGroup() as tasks:
        tasks.create_task(sink.wait_drained())
        await asyncio.sleep(0)
        await sink.take()


async def test_large_events_fill_it_before_many_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_sink, "MAX_BYTES", 1000)
    sink = filled(QueueSink(), 9, b"x" * 100)
    assert not sink.full
    sink.deliver(Batch([event("10", 10, b"x" * 100)], 10, "log"))
    states: list[bool] = [sink.full]
    async with asyncio.timeout(30), TaskGroup() as tasks:
        drained = tasks.create_task(sink.wait_drained())
        for _ in range(4):
            await sink.take()
            await asyncio.sleep(0)
        states.append(drained.done())
        await sink.take()
    assert states == [True, False]


async def test_gaps_are_counted_and_other_marks_are_not() -> None:
    sink = QueueSink()
    for kind in ("caught_up", "heartbeat", "gap", "gap"):
        sink.mark(kind, "log-1", {})
    assert sink.lagged == 2


async def test_it_is_filled_for_as_long_as_the_block_runs(bus: Followed) -> None:
    async with asyncio.timeout(30), TaskGroup() as tasks:
        await bus.tell("1", "2")
        async with following(bus.subscriptions, Interest(["*"], start="beginning"), tasks) as sink:
            assert await taken(sink, 2) == [("1", 1), ("2", 2)]
            await bus.tell("3")
            assert await taken(sink, 1) == [("3", 3)]
    assert bus.hub.subscriptions == 0


async def test_what_ended_the_feed_is_raised_once_all_is_taken(bus: Followed) -> None:
    async with asyncio.timeout(30), TaskGroup() as tasks:
        bad = Interest(["*"], start={"cursor": "nonsense"})
        async with following(bus.subscriptions, bad, tasks) as sink:
            filled(sink, 1)
            assert await taken(sink, 1) == [("1", 1)]
            for _ in range(2):
                with pytest.raises(InvalidArgument, match="is no cursor"):
                    await sink.take()


async def test_a_slow_reader_gets_everything_from_the_log(bus: Followed) -> None:
    sink = QueueSink(limit=4)
    async with asyncio.timeout(30), TaskGroup() as tasks:
        task = tasks.create_task(sink.fill(bus.subscriptions, Interest(["*"])))
        await asyncio.sleep(0)
        for number in range(1, 41):
            await bus.tell(str(number))
        assert [position for _, position in await taken(sink, 40)] == list(range(1, 41))
        task.cancel()
    assert sink.lagged > 0
