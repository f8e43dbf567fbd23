"""Subscribers get one ordered stream: no gap, no duplicate, and where something is gone, word of it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ksi_common.errors import InvalidArgument
from ksi_daemon import subscriptions
from ksi_daemon.eventlog import PAGE
from tests.support.following import Followed, SlowSink, followed


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Followed]:
    async with followed(tmp_path) as made:
        yield made


def numbered(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


async def turns(count: int = 5) -> None:
    """Let feeds go on as far as they can without the log."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_now_begins_with_what_is_told_from_now_on(bus: Followed) -> None:
    await bus.tell("before")
    sink = bus.follow("now")
    await sink.wait_for_mark("caught_up")
    await bus.tell("a", "b")
    await sink.wait_for_event("b")
    assert sink.story == ["<caught_up>", "a", "b"]
    assert [got.position for got in sink.got] == [1, 2, 3]


async def test_the_beginning_is_the_first_event_of_the_log(bus: Followed) -> None:
    await bus.tell("a", "b")
    sink = bus.follow("beginning")
    await sink.wait_for_mark("caught_up")
    await bus.tell("c")
    await sink.wait_for_event("c")
    assert sink.story == ["a", "b", "<caught_up>", "c"]


async def test_an_empty_log_is_caught_up_with_at_once(bus: Followed) -> None:
    sink = bus.follow("beginning")
    await sink.wait_for_mark("caught_up")
    assert [got.position for got in sink.got] == [0]


async def test_a_cursor_begins_after_the_event_it_came_with(bus: Followed) -> None:
    await bus.tell("a", "b", "c")
    first = bus.follow("beginning")
    await first.wait_for_mark("caught_up")
    for got in first.got:
        sink = bus.follow({"cursor": got.cursor})
        await sink.wait_for_mark("caught_up")
        assert sink.ids == ["a", "b", "c"][got.position :]


async def test_a_time_begins_with_the_first_event_at_or_after_it(bus: Followed) -> None:
    await bus.tell("a")
    await bus.tell("b")
    b = await bus.log.get("b")
    assert b is not None
    sink = bus.follow({"time": b.time})
    await sink.wait_for_mark("caught_up")
    assert sink.ids in (["b"], ["a", "b"])
    a = await bus.log.get("a")
    assert a is not None
    assert len(sink.ids) == 1 + (a.time_us == b.time_us)


async def test_a_time_beyond_the_log_begins_at_its_head(bus: Followed) -> None:
    await bus.tell("a")
    sink = bus.follow({"time": "2999-01-01T00:00:00Z"})
    await sink.wait_for_mark("caught_up")
    assert [got.position for got in sink.got] == [1]


async def test_a_cursor_of_another_log_says_so_and_begins_anew(bus: Followed) -> None:
    await bus.tell("a")
    sink = bus.follow({"cursor": "0therl0g-7"})
    await sink.wait_for_mark("caught_up")
    assert sink.story == ["<gap>", "a", "<caught_up>"]
    assert sink.got[0].fields == {"reason": "other_log"}
    assert sink.got[0].cursor == bus.log.cursor(0)


async def test_a_cursor_beyond_the_log_says_what_is_lost(bus: Followed) -> None:
    await bus.tell("a", "b")
    sink = bus.follow({"cursor": bus.log.cursor(5)})
    await sink.wait_for_mark("caught_up")
    await bus.tell("c")
    await sink.wait_for_event("c")
    assert sink.story == ["<gap>", "<caught_up>", "c"]
    assert sink.got[0].fields == {"reason": "beyond_the_log", "lost": 3}
    assert sink.got[0].position == 2


async def test_what_is_no_cursor_is_refused(bus: Followed) -> None:
    with pytest.raises(InvalidArgument, match="is no cursor"):
        await bus.subscriptions.follow(
            subscriptions.Interest(["*"], start={"cursor": "nonsense"}), SlowSink()
        )
    assert bus.hub.subscriptions == 0


async def test_only_what_matches_is_delivered_from_the_log_and_live(bus: Followed) -> None:
    await bus.tell("a", event="x:y")
    await bus.tell("b", event="x:z")
    sink = bus.follow("beginning", patterns=["x:y"])
    await sink.wait_for_mark("caught_up")
    assert sink.got[-1].position == 2
    await bus.tell("c", event="x:z")
    await bus.tell("d", event="x:y")
    await sink.wait_for_event("d")
    assert sink.story == ["a", "<caught_up>", "d"]


async def test_a_stream_can_be_followed_alone(bus: Followed) -> None:
    await bus.tell("a", stream="s/1")
    await bus.tell("b", stream="s/2")
    sink = bus.follow("beginning", stream="s/1")
    await sink.wait_for_mark("caught_up")
    await bus.tell("c")
    await bus.tell("d", stream="s/1")
    await sink.wait_for_event("d")
    assert sink.story == ["a", "<caught_up>", "d"]


async def test_requests_are_not_delivered(bus: Followed) -> None:
    from tests.support.databases import envelope

    await bus.database.record(envelope())
    await bus.tell("a")
    sink = bus.follow("beginning")
    await sink.wait_for_mark("caught_up")
    assert sink.story == ["a", "<caught_up>"]


async def test_catching_up_while_events_are_published_skips_and_doubles_nothing(bus: Followed) -> None:
    await bus.tell(*numbered(1, 3 * PAGE))
    sinks = [bus.follow("beginning") for _ in range(3)]
    for number in range(3 * PAGE + 1, 3 * PAGE + 101):
        await bus.tell(str(number))
    for sink in sinks:
        await sink.wait_for_event(str(3 * PAGE + 100))
        assert sink.seqs == list(range(1, 3 * PAGE + 101))
        assert len(sink.marks("caught_up")) == 1


async def test_a_log_full_of_other_events_is_read_to_its_end(bus: Followed) -> None:
    await bus.tell(*numbered(1, PAGE + 5), event="x:other")
    await bus.tell("a")
    sink = bus.follow("beginning", patterns=["demo:*"])
    await sink.wait_for_mark("caught_up")
    assert sink.story == ["a", "<caught_up>"]


async def test_a_slow_subscriber_goes_back_to_the_log_and_misses_nothing(bus: Followed) -> None:
    sink = bus.follow(sink=SlowSink(capacity=10))
    other = bus.follow()
    await sink.wait_for_mark("caught_up")
    for number in range(1, 101):
        await bus.tell(str(number))
    await other.wait_for_event("100")
    assert sink.seqs == list(range(1, 11))
    while len(sink.seqs) < 100:
        sink.read()
        await sink.wait_until(lambda: sink.full or len(sink.seqs) == 100)
    assert sink.seqs == list(range(1, 101))
    assert [len(sink.marks(kind)) for kind in ("caught_up", "gap")] == [1, 0]


async def test_of_ephemeral_events_that_were_missed_there_is_word(bus: Followed) -> None:
    sink = bus.follow(sink=SlowSink(capacity=2))
    await sink.wait_for_mark("caught_up")
    await bus.tell("1", "2")
    await sink.wait_for_event("2")
    for name in "abc":
        bus.pass_by(name)
    await turns()
    await bus.tell("3")
    sink.read()
    await sink.wait_for_mark("gap")
    await sink.wait_for_event("3")
    bus.pass_by("d")
    await sink.wait_for_event("d")
    assert sink.story == ["<caught_up>", "1", "2", "3", "<gap>", "d"]
    assert sink.marks("gap")[0].fields == {"reason": "ephemeral_missed", "missed": 3}


async def test_an_ephemeral_event_never_overtakes_a_durable_one(bus: Followed) -> None:
    """Neither live, nor while the log is read: then it waits until the log is."""
    sinks = [bus.follow(start) for start in ("now", "beginning")]
    for number in range(1, 51):
        await bus.tell(f"d{number}")
        bus.pass_by(f"e{number}")
        if number == 25:
            sinks += [bus.follow(start) for start in ("now", "beginning")]
    for sink in sinks:
        await sink.wait_for_event("e50")
        seen = {event_id: place for place, event_id in enumerate(sink.ids)}
        for number in range(1, 51):
            if f"e{number}" in seen and f"d{number}" in seen:
                assert seen[f"d{number}"] < seen[f"e{number}"]
            if f"e{number - 1}" in seen and f"d{number}" in seen:
                assert seen[f"e{number - 1}"] < seen[f"d{number}"]


async def test_drop_oldest_keeps_the_newest_and_says_how_many_went(
    bus: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "MAX_EVENTS", 3)
    sink = bus.follow(sink=SlowSink(capacity=1), overflow="drop_oldest")
    await sink.wait_for_mark("caught_up")
    await bus.tell("1")
    await sink.wait_for_event("1")
    for number in range(2, 9):
        await bus.tell(str(number))
    await turns()
    sink.read()
    await sink.wait_for_event("8")
    assert sink.story == ["<caught_up>", "1", "<gap>", "6", "7", "8"]
    assert sink.marks("gap")[0].fields == {"reason": "overflow", "dropped": 4}


async def test_drop_oldest_has_a_limit_of_bytes_too(bus: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "MAX_BYTES", 250)
    sink = bus.follow(sink=SlowSink(capacity=1), overflow="drop_oldest")
    await sink.wait_for_mark("caught_up")
    for number in range(1, 6):
        await bus.tell(str(number), data=b'"%b"' % (b"x" * 98))
    await turns()
    sink.read()
    await sink.wait_for_event("5")
    assert sink.story == ["<caught_up>", "1", "<gap>", "4", "5"]


async def test_nothing_is_said_of_a_gap_where_everything_was_kept(bus: Followed) -> None:
    sink = bus.follow(sink=SlowSink(capacity=1), overflow="drop_oldest")
    await sink.wait_for_mark("caught_up")
    for number in range(1, 6):
        await bus.tell(str(number))
    bus.pass_by("e")
    await turns()
    sink.read()
    await sink.wait_for_event("e")
    await bus.tell("6")
    sink.read()
    await sink.wait_for_event("6")
    assert sink.story == ["<caught_up>", "1", "2", "3", "4", "5", "e", "6"]


async def test_latest_per_key_keeps_the_last_of_each_stream_or_name(bus: Followed) -> None:
    sink = bus.follow(sink=SlowSink(capacity=1), overflow="latest_per_key")
    await sink.wait_for_mark("caught_up")
    await bus.tell("0")
    await sink.wait_for_event("0")
    for event_id, event, stream in [
        ("1", "x:y", "s/1"),
        ("2", "x:y", "s/2"),
        ("3", "x:y", None),
        ("4", "x:z", None),
        ("5", "x:z", "s/1"),
        ("6", "x:y", None),
    ]:
        await bus.tell(event_id, event=event, stream=stream)
    await turns()
    sink.read()
    await sink.wait_for_event("6")
    assert sink.story == ["<caught_up>", "0", "<gap>", "2", "4", "5", "6"]
    assert sink.marks("gap")[0].fields == {"reason": "overflow", "dropped": 2}


async def test_latest_per_key_has_a_limit_of_keys(bus: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "MAX_EVENTS", 2)
    sink = bus.follow(sink=SlowSink(capacity=1), overflow="latest_per_key")
    await sink.wait_for_mark("caught_up")
    for number in range(1, 6):
        await bus.tell(str(number), stream=f"s/{number}")
    await turns()
    sink.read()
    await sink.wait_for_event("5")
    assert sink.story == ["<caught_up>", "1", "<gap>", "4", "5"]
    assert sink.marks("gap")[0].fields == {"reason": "overflow", "dropped": 2}


async def test_latest_per_key_has_a_limit_of_bytes_too(
    bus: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "MAX_BYTES", 250)
    sink = bus.follow(sink=SlowSink(capacity=1), overflow="latest_per_key")
    await sink.wait_for_mark("caught_up")
    for number in range(1, 6):
        await bus.tell(str(number), stream=f"s/{number % 3}", data=b'"%b"' % (b"x" * 98))
    await turns()
    sink.read()
    await sink.wait_for_event("5")
    assert sink.story == ["<caught_up>", "1", "<gap>", "4", "5"]


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest_per_key"])
async def test_resuming_from_the_gap_of_a_dropping_subscription_has_what_was_kept(
    bus: Followed, monkeypatch: pytest.MonkeyPatch, overflow: str
) -> None:
    monkeypatch.setattr(subscriptions, "MAX_EVENTS", 2)
    sink = bus.follow(sink=SlowSink(capacity=1), overflow=overflow)
    await sink.wait_for_mark("caught_up")
    for number in range(1, 6):
        await bus.tell(str(number), stream=f"s/{number}")
    await turns()
    sink.read()
    await sink.wait_for_event("5")
    (gap,) = sink.marks("gap")
    again = bus.follow({"cursor": gap.cursor})
    await again.wait_for_mark("caught_up")
    assert again.ids[-2:] == ["4", "5"]


async def test_a_subscriber_that_drops_overflows_again_and_again(bus: Followed) -> None:
    sink = bus.follow(sink=SlowSink(capacity=2), overflow="drop_oldest")
    await sink.wait_for_mark("caught_up")
    for number in range(1, 31):
        await bus.tell(str(number))
        if number % 7 == 0:
            sink.read()
            await turns()
    sink.read()
    await bus.tell("last")
    sink.read()
    await sink.wait_for_event("last")
    assert sink.ids == [*numbered(1, 30), "last"]


async def test_a_heartbeat_tells_the_position_also_where_nothing_matches(tmp_path: Path) -> None:
    async with followed(tmp_path, heartbeat_s=0.001) as bus:
        sink = bus.follow("now", patterns=["x:*"])
        await sink.wait_for_mark("heartbeat")
        assert sink.marks("heartbeat")[0].position == 0
        await bus.tell("a", "b")
        await sink.wait_until(lambda: sink.got[-1].position == 2)
        assert {got.mark for got in sink.got} == {"caught_up", "heartbeat"}


async def test_there_are_heartbeats_while_a_long_log_without_matches_is_read(tmp_path: Path) -> None:
    async with followed(tmp_path, heartbeat_s=0.0) as bus:
        await bus.tell(*numbered(1, 2 * PAGE))
        sink = bus.follow("beginning", patterns=["x:*"])
        await sink.wait_for_mark("caught_up")
        before = sink.got[: sink.story.index("<caught_up>")]
        assert [(got.mark, got.position) for got in before] == [("heartbeat", PAGE), ("heartbeat", 2 * PAGE)]


async def test_a_full_sink_gets_no_heartbeats(tmp_path: Path) -> None:
    async with followed(tmp_path, heartbeat_s=0.0) as bus:
        sink = bus.follow("now", sink=SlowSink(capacity=1))
        await sink.wait_for_mark("heartbeat")
        await bus.tell("a")
        await sink.wait_for_event("a")
        marks = len(sink.marks("heartbeat"))
        await turns(20)
        assert len(sink.marks("heartbeat")) == marks
        sink.read()
        await sink.wait_for_mark("heartbeat", marks + 1)


async def test_a_feed_that_is_stopped_is_forgotten(bus: Followed) -> None:
    sink = bus.follow()
    await sink.wait_for_mark("caught_up")
    assert bus.hub.subscriptions == 1
    await bus.stop()
    await bus.tell("a")
    await turns()
    assert (bus.hub.subscriptions, sink.ids) == (0, [])


@pytest.mark.parametrize("limits", [{"MAX_EVENTS": 5}, {"MAX_BYTES": 20}])
async def test_what_is_held_while_the_log_is_read_has_a_bound(
    bus: Followed, monkeypatch: pytest.MonkeyPatch, limits: Mapping[str, int]
) -> None:
    """A sink that is full keeps its feed reading the log; what is published meanwhile is not piled up."""
    for name, value in limits.items():
        monkeypatch.setattr(subscriptions, name, value)
    await bus.tell(*numbered(1, 4))
    sink = bus.follow("beginning", sink=SlowSink(capacity=2))
    await sink.wait_for_event("4")
    await bus.tell(*numbered(5, 50))
    await turns()
    assert held(bus) == 0
    while len(sink.seqs) < 50:
        sink.read()
        await sink.wait_until(lambda: sink.full or len(sink.seqs) == 50)
    assert sink.seqs == list(range(1, 51))


def held(bus: Followed) -> int:
    """Count the events that feeds hold back."""
    feeds: list[Any] = [tap for channel in bus.hub._channels.values() for tap in channel.taps]
    return sum(len(batch.events) for feed in feeds for batch in feed._held)


async def test_what_is_held_and_then_overflows_comes_from_the_log(bus: Followed) -> None:
    """The sink is full again when what was held is to be let go."""
    await bus.tell(*numbered(1, 4))
    sink = bus.follow("beginning", sink=SlowSink(capacity=4))
    await sink.wait_for_event("4")
    for number in range(5, 13):
        await bus.tell(str(number))
        bus.pass_by(f"e{number}")
        await turns()
    sink.read()
    while len(sink.seqs) < 12:
        await sink.wait_until(lambda: sink.full or len(sink.seqs) == 12)
        sink.read()
    assert sink.seqs == list(range(1, 13))
