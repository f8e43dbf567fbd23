"""``event:subscribe`` over the socket: one order, no gap, no duplicate, and a cursor to go on from."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ksi_common.clock import format_time
from ksi_common.events import event
from ksi_common.strict_json import dumps
from ksi_daemon.hub import MANY
from ksi_daemon.shared_bytes import SharedBytes
from ksi_daemon.testing import FakeClock, RunningDaemon, Wire, running_daemon


async def tell(ksi: RunningDaemon, numbers: Iterable[int], name: str = "demo:told", **rest: Any) -> str:
    """Publish numbers; give the cursor of the last one."""
    cursor = ""
    for n in numbers:
        cursor = (await ksi.call_raw("event:publish", {"event": name, "data": {"n": n}, **rest}))["cursor"]
    return cursor


@asynccontextmanager
async def subscribed(ksi: RunningDaemon, *patterns: str, **wish: Any) -> AsyncIterator[Wire]:
    """Follow events on a connection of one's own."""
    async with ksi.connect() as wire:
        data = {"patterns": list(patterns or ["demo:*"]), **wish}
        wire.send({"event": "event:subscribe", "data": data, "id": "s"})
        yield wire


@asynccontextmanager
async def live(ksi: RunningDaemon, *patterns: str, **wish: Any) -> AsyncIterator[Wire]:
    """Follow events that are told from now on."""
    async with subscribed(ksi, *patterns, **wish) as wire:
        assert (await wire.receive())["type"] == "caught_up"
        yield wire


async def frames(wire: Wire, last: int | str) -> list[Any]:
    """Read up to an item with the number ``last``, or a mark or an end of that type.

    Items are given as their numbers, everything else as its type.
    """
    seen: list[Any] = []
    while not seen or seen[-1] != last:
        frame = await wire.receive()
        assert frame["id"] == "s"
        seen.append(frame["data"]["data"]["n"] if frame["type"] == "item" else frame["type"])
    return seen


async def refused(ksi: RunningDaemon, **wish: Any) -> tuple[str, Any]:
    async with subscribed(ksi, **wish) as wire:
        answer = await wire.receive()
    assert answer["type"] == "error", answer
    return answer["error"]["code"], answer["error"].get("details", {}).get("reason")


# Where to begin.


async def test_now_gives_what_is_told_from_now_on(ksi: RunningDaemon) -> None:
    await tell(ksi, range(3))
    async with live(ksi) as wire:
        await tell(ksi, range(3, 6))
        assert await frames(wire, 5) == [3, 4, 5]


async def test_the_beginning_gives_everything_once(ksi: RunningDaemon) -> None:
    await tell(ksi, range(5))
    async with subscribed(ksi, start="beginning") as wire:
        assert await frames(wire, "caught_up") == [0, 1, 2, 3, 4, "caught_up"]
        await tell(ksi, range(5, 8))
        assert await frames(wire, 7) == [5, 6, 7]


async def test_a_cursor_gives_what_came_after_it(ksi: RunningDaemon) -> None:
    cursors = [await tell(ksi, [n]) for n in range(5)]
    for number, cursor in enumerate(cursors):
        async with subscribed(ksi, start={"cursor": cursor}) as wire:
            expected = [*range(number + 1, 5), "caught_up"]
            assert await frames(wire, "caught_up") == expected


async def test_the_cursor_of_each_frame_resumes_after_it(ksi: RunningDaemon) -> None:
    await tell(ksi, range(3))
    async with subscribed(ksi, start="beginning") as wire:
        first = [await wire.receive() for _ in range(4)]
        await tell(ksi, [3])
        first.append(await wire.receive())
    for number, frame in enumerate(first):
        heard = sum(earlier["type"] == "item" for earlier in first[: number + 1])
        async with subscribed(ksi, start={"cursor": frame["cursor"]}) as wire:
            assert await frames(wire, "caught_up") == [*range(heard, 4), "caught_up"]


async def test_a_cursor_is_good_after_a_restart(tmp_path: Path) -> None:
    async with running_daemon(home=tmp_path / "var") as ksi:
        cursor = await tell(ksi, range(2))
        await tell(ksi, range(2, 4))
    wish = {"start": {"cursor": cursor}}
    async with running_daemon(home=tmp_path / "var") as ksi, subscribed(ksi, **wish) as wire:
        await tell(ksi, [4])
        assert [n for n in await frames(wire, 4) if n != "caught_up"] == [2, 3, 4]


async def test_what_is_told_while_it_catches_up_comes_in_order(ksi: RunningDaemon) -> None:
    """More than a page of the log, with publishers at work."""
    batch = [event.NewEvent(event="demo:told", data={"n": n}) for n in range(1500)]
    for start in (0, 500, 1000):
        await ksi.bus.call(event.Append(stream="demo/1", events=batch[start : start + 500]))
    async with subscribed(ksi, start="beginning") as wire:
        await tell(ksi, range(1500, 1550))
        assert [n for n in await frames(wire, 1549) if n != "caught_up"] == list(range(1550))


async def test_a_time_gives_what_was_told_from_then_on() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi:
        moments = []
        for n in range(4):
            clock.advance(60)
            moments.append(clock.time_us())
            await tell(ksi, [n])
        for number, moment in enumerate(moments):
            for shift, first in ((-1, number), (0, number), (1, number + 1)):
                async with subscribed(ksi, start={"time": format_time(moment + shift)}) as wire:
                    assert await frames(wire, "caught_up") == [*range(first, 4), "caught_up"]


async def test_a_time_has_the_offset_that_it_is_written_with() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi:
        await tell(ksi, [0])
        clock.advance(60)
        there = datetime.fromtimestamp(clock.time_us() / 1_000_000, UTC).astimezone(
            timezone(timedelta(hours=5))
        )
        await tell(ksi, [1])
        async with subscribed(ksi, start={"time": there.isoformat()}) as wire:
            assert await frames(wire, "caught_up") == [1, "caught_up"]


async def test_a_time_to_come_gives_nothing_before_it() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi:
        await tell(ksi, [0])
        start = {"time": format_time(clock.time_us() + 60_000_000)}
        async with subscribed(ksi, start=start) as wire:
            assert await frames(wire, "caught_up") == ["caught_up"]
            await tell(ksi, [1, 2])
            clock.advance(59.5)
            await tell(ksi, [3])
            clock.advance(0.5)
            await tell(ksi, [4])
            clock.jump(-30)  # it has begun: a clock that is put back ends nothing
            await tell(ksi, [5])
            assert await frames(wire, 5) == [4, 5]
        answer = {"patterns": ["demo:*"], "start": start, "consumer": "c"}
        clock.jump(-3600)
        async with ksi.connect() as wire:
            refusal = await wire.call("event:subscribe", answer)
            assert refusal["error"]["details"]["reason"] == "start_in_future"


@pytest.mark.parametrize(
    "cursor", ["", "-", "1", "no cursor", "a-b", "a--1", "a-1.5", "a-" + "9" * 17, "a-٣"]
)
async def test_what_is_no_cursor_is_refused(ksi: RunningDaemon, cursor: str) -> None:
    assert await refused(ksi, start={"cursor": cursor}) == ("INVALID_ARGUMENT", "bad_cursor")


@pytest.mark.parametrize(
    "start", ["later", "", None, 5, {}, {"cursor": 5}, {"time": "noon"}, {"time": "2026-01-31T12:00:00"}]
)
async def test_what_is_no_start_is_refused(ksi: RunningDaemon, start: object) -> None:
    assert (await refused(ksi, start=start))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("patterns", [[], [""], ["Demo:*"], ["demo:*:told"], ["**"], ["demo:*"] * 257])
async def test_what_is_no_pattern_is_refused(ksi: RunningDaemon, patterns: list[str]) -> None:
    assert (await refused(ksi, patterns=patterns))[0] == "INVALID_ARGUMENT"


async def test_a_cursor_of_another_log_says_so_and_gives_everything(ksi: RunningDaemon) -> None:
    await tell(ksi, range(3))
    async with running_daemon() as other:
        cursor = await tell(other, range(2))
    async with subscribed(ksi, start={"cursor": cursor}) as wire:
        gap = await wire.receive()
        assert (gap["type"], gap["reason"]) == ("gap", "other_log")
        assert await frames(wire, "caught_up") == [0, 1, 2, "caught_up"]


async def test_a_cursor_beyond_the_log_says_so_and_goes_on_from_now(ksi: RunningDaemon) -> None:
    """As after a backup was restored: the log is the same one, and shorter."""
    log_id, _, seq = (await tell(ksi, range(3))).partition("-")
    async with subscribed(ksi, start={"cursor": f"{log_id}-{int(seq) + 10}"}) as wire:
        gap = await wire.receive()
        assert (gap["type"], gap["reason"], gap["lost"]) == ("gap", "beyond_the_log", 10)
        await tell(ksi, [3])
        assert await frames(wire, 3) == ["caught_up", 3]


# What is given.


async def test_an_item_says_what_there_is_to_say(ksi: RunningDaemon) -> None:
    async with live(ksi) as wire:
        published = await ksi.call_raw(
            "event:publish", {"event": "demo:told", "data": {"n": None, "é": [1.0]}, "stream": "demo/1"}
        )
        item = await wire.receive()
    stored = await ksi.call_raw("event:get", {"event_id": published["event_id"]})
    assert (item["id"], item["type"], item["cursor"]) == ("s", "item", published["cursor"])
    assert item["data"] == {name: stored[name] for name in item["data"]}
    assert set(item["data"]) == {
        "event", "data", "event_id", "stream", "version", "correlation_id", "causation_id", "actor", "time",
    }  # fmt: skip


async def test_patterns_choose(ksi: RunningDaemon) -> None:
    async with live(ksi, "demo:a", "demo:b:*", "other*", "demo:a") as wire:
        names = ("demo:a", "demo:ab", "demo:b", "demo:b:c", "other:x", "others:y", "demo:a")
        for n, name in enumerate(names):
            await tell(ksi, [n], name)
        assert await frames(wire, 6) == [0, 3, 4, 5, 6]


async def test_a_stream_chooses_of_the_past_and_of_what_comes(ksi: RunningDaemon) -> None:
    async def tell_two(n: int) -> None:
        await tell(ksi, [n], stream="demo/1")
        await tell(ksi, [n + 100], stream="demo/2")
        await tell(ksi, [n + 200])

    await tell_two(0)
    async with subscribed(ksi, stream="demo/1", start="beginning") as wire:
        assert await frames(wire, "caught_up") == [0, "caught_up"]
        await tell_two(1)
        await tell_two(2)
        assert await frames(wire, 2) == [1, 2]


async def test_what_is_asked_is_not_given(ksi: RunningDaemon) -> None:
    async with live(ksi, "*") as wire:
        await ksi.call_raw("state:set", {"key": "a", "value": 1})
        await ksi.call_raw("state:delete", {"key": "a"})
        names = [(await wire.receive())["data"]["event"] for _ in range(2)]
    assert names == ["state:changed", "state:removed"]


async def test_what_is_ephemeral_is_given_in_its_place_and_never_again(ksi: RunningDaemon) -> None:
    async with live(ksi) as wire:
        for n in range(0, 10, 2):
            await tell(ksi, [n])
            await tell(ksi, [n + 1], ephemeral=True)
        assert await frames(wire, 9) == list(range(10))
    async with subscribed(ksi, start="beginning") as wire:
        assert await frames(wire, "caught_up") == [0, 2, 4, 6, 8, "caught_up"]


async def test_many_subscriptions_of_one_connection_are_told_apart(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for ident, pattern in (("a", "demo:a"), ("b", "demo:*"), (7, "demo:b")):
            data = {"patterns": [pattern]}
            wire.send({"event": "event:subscribe", "data": data, "id": ident})
        marks = [await wire.receive() for _ in range(3)]
        await tell(ksi, [1], "demo:a")
        await tell(ksi, [2], "demo:b")
        items = [await wire.receive() for _ in range(4)]
    assert {mark["id"] for mark in marks} == {"a", "b", 7}
    heard = {(item["id"], item["data"]["data"]["n"]) for item in items}
    assert heard == {("a", 1), ("b", 1), ("b", 2), (7, 2)}


async def test_a_heartbeat_has_the_cursor_of_now() -> None:
    async with running_daemon(settings={"limits": {"heartbeat_s": 0.05}}) as ksi, live(ksi) as wire:
        cursor = await tell(ksi, [0], "other:told")
        while (beat := await wire.receive())["cursor"] != cursor:
            assert beat["type"] == "heartbeat"
        assert beat["type"] == "heartbeat"


# The end.


async def test_a_cancel_ends_it(ksi: RunningDaemon) -> None:
    async with live(ksi) as wire:
        wire.send({"type": "cancel", "id": "s"})
        answer = await wire.receive()
        assert (answer["id"], answer["type"], answer["error"]["code"]) == ("s", "error", "CANCELLED")
        await tell(ksi, [1])
        wire.send({"event": "system:health", "id": "next"})
        assert (await wire.receive())["id"] == "next"
        assert ksi.daemon.hub.subscriptions == 1, "that of the test itself"


async def test_its_id_is_free_after_the_end(ksi: RunningDaemon) -> None:
    async with live(ksi) as wire:
        again = {"event": "event:subscribe", "data": {"patterns": ["demo:*"]}, "id": "s"}
        wire.send(again)
        assert (await wire.receive())["error"]["code"] == "ALREADY_EXISTS"
        wire.send({"type": "cancel", "id": "s"})
        assert (await wire.receive())["error"]["code"] == "CANCELLED"
        wire.send(again)
        await tell(ksi, [1])
        assert 1 in await frames(wire, 1)


async def test_the_end_of_the_daemon_is_said() -> None:
    async with running_daemon() as ksi, live(ksi, "demo:*") as wire:
        await ksi.call_raw("system:shutdown")
        answer = await wire.receive()
        assert (answer["id"], answer["error"]["code"]) == ("s", "UNAVAILABLE")
        await wire.wait_closed()


# Clients that do not keep up.

LARGE = "x" * 30_000
COUNT = 500
"""Some 15 MB: more than the connection, the system and a buffer of 8 MiB hold together."""


@asynccontextmanager
async def lazy(ksi: RunningDaemon, overflow: str = "log") -> AsyncIterator[Wire]:
    """Follow, by a connection that takes little before it is read."""
    reader, writer = await asyncio.open_unix_connection(ksi.paths.socket, limit=64 * 1024)
    wire = Wire(reader, writer)
    data = {"patterns": ["demo:*"], "overflow": overflow}
    wire.send({"event": "event:subscribe", "data": data, "id": "s"})
    assert (await wire.receive())["type"] == "caught_up"
    yield wire
    wire.close()


@asynccontextmanager
async def lagging(overflow: str) -> AsyncIterator[tuple[RunningDaemon, Wire]]:
    """The same, of a daemon that waits for long."""
    settings = {"limits": {"unwritable_s": 60, "heartbeat_s": 60}}
    async with running_daemon(settings=settings) as ksi, lazy(ksi, overflow) as wire:
        yield ksi, wire


async def flood(ksi: RunningDaemon, stream: str = "demo/1") -> None:
    """Tell more than a client that does not read can be sent."""
    for start in range(0, COUNT, 10):
        events = [
            event.NewEvent(event="demo:told", data={"n": n, "x": LARGE}) for n in range(start, start + 10)
        ]
        await ksi.bus.call(event.Append(stream=stream, events=events))


async def test_who_reads_late_gets_everything_from_the_log() -> None:
    async with lagging("log") as (ksi, wire):
        await flood(ksi)
        assert await frames(wire, COUNT - 1) == list(range(COUNT))
        await tell(ksi, [COUNT])
        assert await frames(wire, COUNT) == [COUNT]


async def test_who_reads_late_hears_how_much_was_ephemeral() -> None:
    async with lagging("log") as (ksi, wire):
        await flood(ksi)
        await tell(ksi, [-1, -2], ephemeral=True)
        seen: list[Any] = []
        while not seen or seen[-1]["type"] != "gap":
            seen.append(await wire.receive())
        assert (seen[-1]["reason"], seen[-1]["missed"]) == ("ephemeral_missed", 2)
        await tell(ksi, [COUNT])
        seen.extend([await wire.receive() for _ in range(COUNT + 2 - len(seen))])
    assert [f["data"]["data"]["n"] for f in seen if f["type"] == "item"] == list(range(COUNT + 1))


async def test_drop_oldest_keeps_the_newest_and_counts_the_rest() -> None:
    async with lagging("drop_oldest") as (ksi, wire):
        await flood(ksi)
        seen = [await wire.receive()]
        while seen[-1]["type"] != "item" or seen[-1]["data"]["data"]["n"] != COUNT - 1:
            seen.append(await wire.receive())
        await tell(ksi, [COUNT])
        assert await frames(wire, COUNT) == [COUNT]
    (place,) = [number for number, frame in enumerate(seen) if frame["type"] == "gap"]
    numbers = [frame["data"]["data"]["n"] for frame in seen if frame["type"] == "item"]
    gap = seen[place]
    assert (gap["reason"], gap["dropped"] > 0) == ("overflow", True)
    assert numbers[:place] == list(range(place))
    assert numbers[place:] == list(range(place + gap["dropped"], COUNT))
    assert gap["cursor"] == seen[place - 1]["cursor"]


async def test_latest_per_key_keeps_the_last_of_each_stream_and_name() -> None:
    async with lagging("latest_per_key") as (ksi, wire):
        await flood(ksi)
        for n in range(10):
            await tell(ksi, [1000 + n], stream=f"demo/{n % 2 + 2}")
            await tell(ksi, [2000 + n], f"demo:{'ab'[n % 2]}")
        seen = [await wire.receive()]
        while seen[-1]["type"] != "gap":
            seen.append(await wire.receive())
        last = [(await wire.receive())["data"]["data"]["n"] for _ in range(5)]
        await tell(ksi, [COUNT])
        assert await frames(wire, COUNT) == [COUNT]
    assert last == [COUNT - 1, 1008, 2008, 1009, 2009]
    assert len(seen) - 1 + seen[-1]["dropped"] + len(last) == COUNT + 20


async def test_who_does_not_read_holds_up_nobody() -> None:
    async with lagging("log") as (ksi, _), live(ksi) as wire:
        await flood(ksi)
        assert await frames(wire, COUNT - 1) == list(range(COUNT))


# Many of them: what all get is put into each one's queue without a copy.


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Take note of what is shared: bytes that were to be sent, and bytes that a socket took."""
    if not hasattr(os, "memfd_create"):
        pytest.skip("nothing is shared here")
    noted: list[tuple[int, int]] = []
    send = SharedBytes.send

    def note(self: SharedBytes, data: bytes, socket: int) -> int:
        taken = send(self, data, socket)
        noted.append((len(data), taken))
        return taken

    monkeypatch.setattr(SharedBytes, "send", note)
    return noted


async def burst(ksi: RunningDaemon, numbers: Iterable[int], size: int = 600, **rest: Any) -> None:
    """Publish in one write, so that one turn of the daemon tells them all."""
    told = [{"event": "demo:told", "data": {"n": n, "x": "x" * size}, **rest} for n in numbers]
    lines = [dumps({"event": "event:publish", "data": data}) for data in told]
    async with ksi.connect() as wire:
        wire.send(b"\n".join(lines) + b"\n")
        for _ in lines:
            answer = await wire.receive()
            assert answer["type"] == "reply", answer


async def test_what_many_get_is_shared_and_in_its_place(
    ksi: RunningDaemon, shared: list[tuple[int, int]]
) -> None:
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(live(ksi)) for _ in range(MANY)]
        await burst(ksi, range(64), ephemeral=True)
        await tell(ksi, [64])
        await burst(ksi, range(65, 129), ephemeral=True)
        for wire in wires:
            assert await frames(wire, 128) == list(range(129))
    assert sum(taken == size for size, taken in shared) >= 2 * (MANY - 1)  # what the first gets is written


async def test_many_that_read_late_get_everything_once_and_in_order(
    ksi: RunningDaemon, shared: list[tuple[int, int]]
) -> None:
    """A burst is more than a socket's queue takes, so that the rest of what is shared has to be written."""
    count = 64 * 6
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(lazy(ksi)) for _ in range(MANY)]
        for start in range(0, count, 64):
            await burst(ksi, range(start, start + 64), size=6000)
        for wire in wires:
            assert await frames(wire, count - 1) == list(range(count))
    assert any(0 < taken < size for size, taken in shared)
