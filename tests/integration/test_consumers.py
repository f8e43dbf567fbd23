"""Named consumers over the socket: a cursor that the daemon keeps, and events given until they are done."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, Client
from ksi_common.errors import KSIError, Unavailable
from ksi_daemon.consumers import rows
from ksi_daemon.consumers.ledger import LOSSES_TOGETHER
from ksi_daemon.supervisor import attempt_async
from ksi_daemon.testing import PATIENCE_S, FakeClock, RunningDaemon, Wire, running_daemon
from tests.support.databases import writable
from tests.support.waiting import eventually

Item = dict[str, Any]


class Follower:
    """A member of a consumer, with its connection."""

    def __init__(self, wire: Wire, who: dict[str, str]) -> None:
        self.wire = wire
        self.who = who
        self._unread: list[dict[str, Any]] = []

    async def frame(self) -> dict[str, Any]:
        """Give the next frame that is no answer."""
        return self._unread.pop(0) if self._unread else await self.wire.receive()

    async def item(self) -> Item:
        """Give the next item, past the marks."""
        while True:
            frame = await self.frame()
            if frame["type"] == "item":
                return frame
            assert frame["type"] in {"caught_up", "heartbeat", "gap"}, frame

    async def items(self, number: int) -> list[Item]:
        return [await self.item() for _ in range(number)]

    async def numbers(self, number: int) -> list[int]:
        return [item["data"]["data"]["n"] for item in await self.items(number)]

    async def mark(self, kind: str) -> dict[str, Any]:
        while (frame := await self.frame())["type"] != kind:
            assert frame["type"] != "item", frame
        return frame

    async def is_given_nothing(self) -> bool:
        """Tell that nothing comes before the answer to what is asked now."""
        await self.call("event:consumers", {})
        return all(frame["type"] != "item" for frame in self._unread)

    async def ack(self, *items: Item) -> dict[str, Any]:
        return await self.say("event:ack", items)

    async def nak(self, *items: Item, **how: Any) -> dict[str, Any]:
        return await self.say("event:nak", items, **how)

    async def say(self, event: str, items: Sequence[Item], **how: Any) -> dict[str, Any]:
        who = {"group": self.who["group"]} if "group" in self.who else self.who
        answer = await self.call(event, {**who, "cursors": [item["cursor"] for item in items], **how})
        assert answer["type"] == "reply", answer
        data: dict[str, Any] = answer["data"]
        return data

    async def call(self, event: str, data: dict[str, Any]) -> dict[str, Any]:
        """Ask on the same connection; items that come before the answer are kept."""
        self.wire.send({"event": event, "data": data, "id": "call"})
        while (frame := await self.wire.receive())["id"] != "call":
            self._unread.append(frame)
        return frame


@asynccontextmanager
async def following(ksi: RunningDaemon, *, start: Any = "now", **wish: Any) -> AsyncIterator[Follower]:
    who: dict[str, str] = {key: wish[key] for key in ("consumer", "group") if key in wish}
    data = {"patterns": ["demo:*"], "start": start, **wish}
    async with ksi.connect() as wire:
        wire.send({"event": "event:subscribe", "data": data, "id": "s"})
        yield Follower(wire, who)


async def tell(ksi: RunningDaemon, *numbers: int, stream: str | None = None) -> None:
    async with ksi.connect() as wire:
        for n in numbers:
            data = {"event": "demo:told", "data": {"n": n}, "stream": stream}
            assert (await wire.call("event:publish", data))["type"] == "reply"


async def state(ksi: RunningDaemon, name: str) -> dict[str, Any]:
    (found,) = (await ksi.call_raw("event:consumers", {"name": name}))["consumers"]
    return dict(found)


async def letters(ksi: RunningDaemon, **wanted: Any) -> list[dict[str, Any]]:
    return list((await ksi.call_raw("deadletter:list", wanted))["letters"])


async def test_one_that_holds_all_it_may_is_given_the_rest_of_the_log_once_that_is_done(
    ksi: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ksi_daemon.consumers.ledger.MAX_HELD", 4)
    async with following(ksi, consumer="c") as follower:
        await follower.mark("caught_up")
        for first in range(0, 48, 12):
            await tell(ksi, *range(first, first + 4))
            held = await follower.items(4)
            await tell(ksi, *range(first + 4, first + 12))
            assert await follower.is_given_nothing()
            await follower.ack(*held)
            rest = await follower.items(8)
            assert [item["data"]["data"]["n"] for item in rest] == list(range(first + 4, first + 12))
            await follower.ack(*rest)
    assert (await state(ksi, "c"))["lag"] == 0


async def test_a_consumer_goes_on_with_what_is_not_acknowledged(ksi: RunningDaemon) -> None:
    await tell(ksi, *range(5))
    async with following(ksi, consumer="c", start="beginning") as first:
        items = await first.items(5)
        assert [item["data"]["attempt"] for item in items] == [1] * 5
        assert await first.ack(*items[:2]) == {"done": 2, "ignored": 0}
        assert await first.ack(*items[:2]) == {"done": 0, "ignored": 2}
        assert await first.ack(items[3]) == {"done": 1, "ignored": 0}
    await tell(ksi, 5)
    async with following(ksi, consumer="c") as second:
        again = await second.items(3)
        assert [(i["data"]["data"]["n"], i["data"]["attempt"]) for i in again] == [(2, 2), (4, 2), (5, 1)]


async def test_a_consumer_begins_when_it_is_asked_for(ksi: RunningDaemon, may_read: asyncio.Event) -> None:
    async with following(ksi, consumer="c") as member:
        await member.call("event:publish", {"event": "demo:told", "data": {"n": 1}})
        may_read.set()
        assert await member.numbers(1) == [1]


async def test_a_consumer_survives_a_restart(tmp_path: Path) -> None:
    async with running_daemon(home=tmp_path / "var") as ksi:
        await tell(ksi, *range(6))
        async with following(ksi, consumer="c", start="beginning") as member:
            items = await member.items(6)
            await member.ack(items[0], items[1], items[4])
    async with running_daemon(home=tmp_path / "var") as ksi:
        assert (await state(ksi, "c"))["lag"] == 3
        async with following(ksi, consumer="c", start="beginning") as member:
            assert await member.numbers(3) == [2, 3, 5]
            assert await member.is_given_nothing()


async def test_no_more_is_given_than_may_be_in_flight(ksi: RunningDaemon) -> None:
    await tell(ksi, *range(5))
    async with following(ksi, consumer="c", start="beginning", max_inflight=2) as member:
        first, second = await member.items(2)
        assert await member.is_given_nothing()
        await member.ack(second)
        assert await member.numbers(1) == [2]
        await member.ack(first)
        assert await member.numbers(1) == [3]
        assert await member.is_given_nothing()


async def test_what_is_given_back_comes_again_with_its_attempt(ksi: RunningDaemon) -> None:
    await tell(ksi, 1)
    async with following(ksi, consumer="c", start="beginning") as member:
        item = await member.item()
        assert await member.nak(item, delay_s=0) == {"done": 1, "ignored": 0}
        again = await member.item()
        assert (again["data"]["attempt"], again["cursor"]) == (2, item["cursor"])
        assert await member.nak(item, delay_s=3600) == {"done": 1, "ignored": 0}
        assert (await state(ksi, "c"))["waiting_again"] == 1
        assert await member.is_given_nothing()
        assert await member.nak(item) == {"done": 0, "ignored": 1}  # nobody has it
        assert await member.ack(item) == {"done": 1, "ignored": 0}
        assert (await state(ksi, "c"))["lag"] == 0


async def test_what_fails_too_often_is_a_dead_letter_and_the_next_is_given(ksi: RunningDaemon) -> None:
    await tell(ksi, 1, 2, stream="demo/1")
    async with following(ksi, consumer="c", start="beginning", max_inflight=1, max_attempts=3) as member:
        item: Item = {}
        for attempt in (1, 2, 3):
            item = await member.item()
            assert (item["data"]["data"]["n"], item["data"]["attempt"]) == (1, attempt)
            await member.nak(item, delay_s=0, reason="no such number")
        assert await member.numbers(1) == [2]
    (letter,) = await letters(ksi)
    assert (letter["kind"], letter["origin"], letter["name"]) == ("event", "consumer", "c")
    assert (letter["event_id"], letter["attempts"]) == (item["data"]["event_id"], 3)
    assert (letter["reason"], letter["message"], letter["state"]) == ("nak", "no such number", "dead")
    (told,) = ksi.events("deadletter:added")
    assert told.correlation_id == item["data"]["correlation_id"]
    assert (await state(ksi, "c"))["dead_letters"] == 1


async def test_one_that_is_given_up_is_a_dead_letter_at_once(ksi: RunningDaemon) -> None:
    await tell(ksi, 1, 2)
    async with following(ksi, consumer="c", start="beginning") as member:
        first, second = await member.items(2)
        await member.nak(first, give_up=True)
        await member.ack(second)
    assert [letter["attempts"] for letter in await letters(ksi)] == [1]
    assert (await state(ksi, "c"))["lag"] == 0


async def test_a_dead_letter_that_is_redriven_is_given_to_its_consumer_anew(ksi: RunningDaemon) -> None:
    await tell(ksi, 1, 2)
    async with following(ksi, consumer="c", start="beginning", max_attempts=1) as member:
        first, second = await member.items(2)
        await member.nak(first)
        await member.ack(second)
        (letter,) = await letters(ksi)
        ids = {"ids": [letter["id"]]}
        assert await ksi.call_raw("deadletter:redrive", ids) == {"redriven": ids["ids"], "already": []}
        assert await ksi.call_raw("deadletter:redrive", ids) == {"redriven": [], "already": ids["ids"]}
        again = await member.item()
        assert (again["cursor"], again["data"]["attempt"]) == (first["cursor"], 1)
        assert await member.is_given_nothing()
        await member.nak(again)
    (letter,) = await letters(ksi)
    assert (letter["state"], letter["attempts"], letter["redrives"]) == ("dead", 2, 1)
    await ksi.call_raw("deadletter:redrive", ids)
    async with following(ksi, consumer="c") as member:  # one that was away meanwhile
        item = await member.item()
        assert item["cursor"] == first["cursor"]
        await member.ack(item)
    async with following(ksi, consumer="c") as member:
        await member.mark("caught_up")
        assert await member.is_given_nothing()


async def test_an_edited_letter_is_another_event_caused_by_the_first(ksi: RunningDaemon) -> None:
    await tell(ksi, 1)
    async with following(ksi, consumer="c", start="beginning", max_attempts=1) as member:
        first = await member.item()
        await member.nak(first)
        (letter,) = await letters(ksi)
        edited = await ksi.call_raw("deadletter:edit", {"id": letter["id"], "data": {"n": 2}})
        assert (edited["data"], edited["original"], edited["edited"]) == ({"n": 2}, {"n": 1}, True)
        await ksi.call_raw("deadletter:redrive", {"ids": [letter["id"]]})
        again = (await member.item())["data"]
    assert again["data"] == {"n": 2}
    assert again["causation_id"] == first["data"]["event_id"] != again["event_id"] == edited["event_id"]
    logged = await ksi.call_raw("event:get", {"event_id": first["data"]["event_id"]})
    assert logged["data"] == {"n": 1}


@pytest.mark.parametrize("away", [False, True])
async def test_an_event_is_done_once_however_often_that_is_said(ksi: RunningDaemon, *, away: bool) -> None:
    await tell(ksi, 1, 2, 3)
    async with following(ksi, consumer="c", start="beginning") as member:
        items = await member.items(3)
        if not away:
            assert await member.ack(items[1], items[1]) == {"done": 1, "ignored": 1}
            assert await member.ack(items[1]) == {"done": 0, "ignored": 1}
    if away:

        async def is_left() -> bool:
            return not (await state(ksi, "c"))["members"]

        await eventually(is_left)
        ask = {"consumer": "c", "cursors": [items[1]["cursor"]]}
        assert await ksi.call_raw("event:ack", ask) == {"done": 1, "ignored": 0}
        assert await ksi.call_raw("event:ack", ask) == {"done": 0, "ignored": 1}


async def test_what_is_acknowledged_while_the_last_member_goes_stays_so(ksi: RunningDaemon) -> None:
    """That the member was lost was noted after it, and the event was to be given again."""
    await tell(ksi, 1)
    async with following(ksi, consumer="c", start="beginning") as member:
        (item,) = await member.items(1)
        consumers, key = ksi.daemon.consumers, ("consumer", "c")
        running = consumers._running[key]
        (seat,) = running.seats.values()
        running.leave(seat, lost=True)
        running.close()
        assert await consumers.report(key, [item["cursor"]], None) == 1
        await running.ended.wait()
        assert await consumers.report(key, [item["cursor"]], None) == 0


async def test_an_edited_letter_says_what_its_event_may_say(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:set", {"key": "a", "value": 1})
    async with following(ksi, consumer="c", patterns=["state:*"], start="beginning") as member:
        await member.nak(await member.item(), give_up=True)
    (letter,) = await letters(ksi)
    wrong = {"namespace": "global", "key": 5, "value": 1}
    async with ksi.connect() as wire:
        error = (await wire.call("deadletter:edit", {"id": letter["id"], "data": wrong}))["error"]
    assert (error["code"], error["details"]["field"]) == ("INVALID_ARGUMENT", "key")
    assert (await ksi.call_raw("deadletter:show", {"id": letter["id"]}))["edited"] is False
    right = {"namespace": "global", "key": "b", "value": 2}
    assert (await ksi.call_raw("deadletter:edit", {"id": letter["id"], "data": right}))["data"] == right


async def test_a_letter_is_discarded_once_and_kept(ksi: RunningDaemon) -> None:
    await tell(ksi, 1)
    async with following(ksi, consumer="c", start="beginning") as member:
        await member.nak(await member.item(), give_up=True)
    wish = {"ids": [1], "reason": "a test"}
    assert await ksi.call_raw("deadletter:discard", wish) == {"discarded": [1], "already": []}
    assert await ksi.call_raw("deadletter:discard", wish) == {"discarded": [], "already": [1]}
    assert await letters(ksi) == []
    assert [letter["id"] for letter in await letters(ksi, state="discarded")] == [1]
    assert [told["reason"] for told in ksi.emitted("deadletter:discarded")] == ["a test"]
    async with ksi.connect() as wire:
        answer = await wire.call("deadletter:edit", {"id": 1, "data": {}})
        assert answer["error"]["details"]["reason"] == "discarded"
        wire.send({"event": "deadletter:export", "data": {"state": None}, "id": "x"})
        assert (await wire.receive())["data"]["data"] == {"n": 1}
        assert (await wire.receive())["type"] == "end"


async def test_members_of_a_group_share_events_by_key(ksi: RunningDaemon) -> None:
    async with (
        following(ksi, group="g", consumer="a", start="beginning") as a,
        following(ksi, group="g", consumer="b", start="beginning") as b,
    ):
        for member in (a, b):
            await member.mark("caught_up")
        for stream in range(16):
            await tell(ksi, stream, stream=f"demo/{stream}")
        members = {m["name"]: m["in_flight"] for m in (await state(ksi, "g"))["members"]}
        assert sum(members.values()) == 16
        assert min(members.values()) > 0
        items = {"a": await a.items(members["a"]), "b": await b.items(members["b"])}
        streams = {name: {item["data"]["stream"] for item in its} for name, its in items.items()}
        assert streams["a"].isdisjoint(streams["b"])
        # The next of each key waits for the one before, and then goes where that went.
        for stream in range(16):
            await tell(ksi, 100 + stream, stream=f"demo/{stream}")
        assert await a.is_given_nothing()
        await a.ack(*items["a"])
        assert {item["data"]["stream"] for item in await a.items(members["a"])} == streams["a"]


async def test_what_a_member_had_goes_to_another_when_it_goes(ksi: RunningDaemon) -> None:
    await tell(ksi, *range(10))
    async with following(ksi, group="g", consumer="a", start="beginning") as a:
        assert len(await a.items(10)) == 10
        async with following(ksi, group="g", consumer="b") as b:
            await b.mark("caught_up")
            a.wire.close()
            again = await b.items(10)
            assert [item["data"]["attempt"] for item in again] == [2] * 10
            assert await b.ack(*again) == {"done": 10, "ignored": 0}
    assert await letters(ksi) == []


async def test_an_event_that_ends_its_members_is_a_dead_letter_and_its_neighbours_are_not(
    ksi: RunningDaemon,
) -> None:
    await tell(ksi, *range(8))
    for _ in range(LOSSES_TOGETHER + 3):  # each time its neighbours are lost too, it is given alone
        async with following(ksi, consumer="c", start="beginning", max_attempts=3) as member:
            while (item := await member.item())["data"]["data"]["n"] != 5:
                await member.ack(item)

    async def is_dead() -> bool:
        return bool(await letters(ksi))

    await eventually(is_dead, patience_s=PATIENCE_S)
    (letter,) = await letters(ksi)
    assert letter["reason"] == "member_lost"
    async with following(ksi, consumer="c") as member:
        for number in (6, 7):
            item = await member.item()
            assert item["data"]["data"]["n"] == number
            await member.ack(item)


async def test_another_connection_takes_the_place_of_the_first(ksi: RunningDaemon) -> None:
    await tell(ksi, 1)
    async with following(ksi, consumer="c", start="beginning") as first:
        item = await first.item()
        async with following(ksi, consumer="c") as second:
            assert (await second.item())["cursor"] == item["cursor"]
            while (frame := await first.frame())["type"] != "error":
                pass
            assert frame["error"]["details"]["reason"] == "taken_over"
            assert frame["error"]["retryable"] is False


async def test_other_patterns_are_taken_up_unless_others_follow(ksi: RunningDaemon) -> None:
    await tell(ksi, 1)
    async with following(ksi, group="g", consumer="a", start="beginning", patterns=["demo:told"]) as a:
        await a.ack(await a.item())
        async with following(ksi, group="g", consumer="b", patterns=["other:*"]) as b:
            error = (await b.frame())["error"]
            assert (error["code"], error["details"]["reason"]) == ("FAILED_PRECONDITION", "other_patterns")
    async with following(ksi, group="g", consumer="b", patterns=["demo:*", "other:*"]) as b:
        await b.mark("caught_up")
        assert (await state(ksi, "g"))["patterns"] == ["demo:*", "other:*"]
        await ksi.call_raw("event:publish", {"event": "other:told", "data": {"n": 2}})
        assert await b.numbers(1) == [2]


async def test_an_automatic_consumer_is_given_nothing_twice(ksi: RunningDaemon) -> None:
    await tell(ksi, *range(200))
    async with following(ksi, consumer="c", start="beginning", ack="auto", max_inflight=7) as member:
        assert await member.numbers(200) == list(range(200))
    await tell(ksi, 200)
    async with following(ksi, consumer="c", ack="auto") as member:
        assert await member.numbers(1) == [200]


async def test_lag_and_age_are_told(ksi: RunningDaemon) -> None:
    async with following(ksi, consumer="c") as member:
        await member.mark("caught_up")
    found = await state(ksi, "c")
    assert (found["lag"], found["age_s"], found["in_flight"], found["members"]) == (0, 0, 0, [])
    await tell(ksi, *range(3))
    await ksi.call_raw("state:set", {"key": "k", "value": 1})
    found = await state(ksi, "c")
    assert found["lag"] == 3
    assert found["age_s"] > 0
    assert (found["patterns"], found["stream"], found["max_attempts"]) == (["demo:*"], None, 5)


async def test_a_deleted_consumer_is_gone_and_its_stream_ends(ksi: RunningDaemon) -> None:
    await tell(ksi, 1)
    async with following(ksi, consumer="c", start="beginning") as member:
        item = await member.item()
        assert (await ksi.call_raw("event:consumer_delete", {"name": "c"}))["status"] == "deleted"
        while (frame := await member.frame())["type"] != "error":
            pass
        assert frame["error"]["details"]["reason"] == "consumer_deleted"
        answer = await member.call("event:ack", {"consumer": "c", "cursors": [item["cursor"]]})
        assert answer["error"]["code"] == "NOT_FOUND"
    assert (await ksi.call_raw("event:consumers"))["consumers"] == []
    async with ksi.connect() as wire:
        assert (await wire.call("event:consumer_delete", {"name": "c"}))["error"]["code"] == "NOT_FOUND"


async def test_retention_leaves_a_gap(tmp_path: Path) -> None:
    async with running_daemon(home=tmp_path / "var") as ksi:
        await tell(ksi, 1)
        async with following(ksi, consumer="c", start="beginning") as member:
            await member.ack(await member.item())
        await tell(ksi, *range(2, 12))
        ksi.daemon.database.facts.horizon = ksi.daemon.hub.head - 2
        async with following(ksi, consumer="c") as member:
            gap = await member.mark("gap")
            assert gap["reason"] == "horizon"
            assert await member.numbers(2) == [10, 11]


@pytest.mark.parametrize(
    ("event", "data", "code"),
    [
        ("event:ack", {"cursors": ["x-1"]}, "INVALID_ARGUMENT"),
        ("event:ack", {"consumer": "c", "cursors": ["nonsense"]}, "INVALID_ARGUMENT"),
        ("event:ack", {"consumer": "c", "cursors": ["abcd-1"]}, "INVALID_ARGUMENT"),
        ("event:nak", {"group": "g", "cursors": []}, "INVALID_ARGUMENT"),
        (
            "event:subscribe",
            {"patterns": ["a:*"], "consumer": "c", "overflow": "drop_oldest"},
            "INVALID_ARGUMENT",
        ),
        ("event:subscribe", {"patterns": ["a:*"], "consumer": "no/name"}, "INVALID_ARGUMENT"),
        ("event:subscribe", {"patterns": ["a:*"], "max_inflight": 2}, "INVALID_ARGUMENT"),
        ("event:subscribe", {"patterns": ["a:*"], "max_attempts": 2}, "INVALID_ARGUMENT"),
        ("event:subscribe", {"patterns": ["a:*"], "ack_wait_s": 2}, "INVALID_ARGUMENT"),
        ("event:subscribe", {"patterns": ["a:*"], "ack": "auto"}, "INVALID_ARGUMENT"),
        ("deadletter:show", {"id": 1}, "NOT_FOUND"),
        ("deadletter:redrive", {"ids": [1]}, "NOT_FOUND"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused(ksi: RunningDaemon, event: str, data: Item, code: str) -> None:
    async with ksi.connect() as wire:
        assert (await wire.call(event, data))["error"]["code"] == code


async def test_a_cursor_beyond_the_log_is_refused(ksi: RunningDaemon) -> None:
    cursor = f"{ksi.daemon.database.log_id}-999999"
    async with ksi.connect() as wire:
        answer = await wire.call("event:ack", {"consumer": "c", "cursors": [cursor]})
    assert answer["error"]["details"]["reason"] == "beyond_the_log"


async def test_acks_leave_no_rows_in_the_log(ksi: RunningDaemon) -> None:
    await tell(ksi, *range(3))
    async with following(ksi, consumer="c", start="beginning") as member:
        items = await member.items(3)
        head = ksi.daemon.hub.head
        for item in items:
            await member.ack(item)
        assert ksi.daemon.hub.head == head


async def test_an_ack_that_cannot_be_stored_is_refused_and_loses_nothing(ksi: RunningDaemon) -> None:
    await tell(ksi, *range(3))
    async with following(ksi, group="g", consumer="b", start="beginning", max_inflight=1) as b:
        held = await b.item()
        async with following(ksi, group="g", consumer="a") as a:
            items = await a.items(2)
            writable(ksi.daemon.database, is_so=False)
            answer = await a.call("event:ack", {"group": "g", "cursors": [items[0]["cursor"]]})
            assert answer["error"]["details"]["reason"] == "store_unavailable"
            a.wire.close()  # what it had is to be noted, too, as soon as that can be
            await b.mark("caught_up")
        writable(ksi.daemon.database, is_so=True)
        await b.ack(held)
        for item in items:
            again = await b.item()
            assert (again["cursor"], again["data"]["attempt"]) == (item["cursor"], 2)
            await b.ack(again)
        assert (await state(ksi, "g"))["lag"] == 0


async def test_a_consumer_that_fails_answers_all_that_was_said_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def settle(*_: object) -> None:
        begun.set()
        go_on.wait(PATIENCE_S)
        raise ValueError("a bug")

    async with running_daemon(settings={"strict": False}) as ksi:
        await tell(ksi, *range(2))
        async with following(ksi, consumer="a", start="beginning") as member:
            first, second = await member.items(2)
            monkeypatch.setattr(rows, "settle", settle)
            async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
                say = partial(ksi.daemon.consumers.report, ("consumer", "a"), refusal=None)
                said = [tasks.create_task(attempt_async(partial(say, cursors=[first["cursor"]])))]
                await asyncio.to_thread(begun.wait, PATIENCE_S)
                said.append(tasks.create_task(attempt_async(partial(say, cursors=[second["cursor"]]))))
                await asyncio.sleep(0)  # until it is said
                go_on.set()
        assert [type(each.result()) for each in said] == [Unavailable, Unavailable]


async def test_the_client_consumes_acks_and_gives_back(ksi: RunningDaemon) -> None:
    async with asyncio.timeout(PATIENCE_S), AsyncClient(ksi.paths.socket) as client:
        await tell(ksi, *range(4))
        seen = []
        async with client.consume("c", "demo:*", start="beginning") as items:
            async for item in items:
                seen.append((item.data["n"], item.attempt))
                if item.data["n"] == 1 and item.attempt == 1:
                    await item.nak(0)
                    continue
                await item.ack()
                if len(seen) == 5:
                    break
        assert sorted(seen) == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1)]
        assert (await state(ksi, "c"))["lag"] == 0


async def test_the_blocking_client_consumes_in_a_group(ksi: RunningDaemon) -> None:
    await tell(ksi, *range(3))

    def work() -> list[Any]:
        with (
            Client(ksi.paths.socket) as client,
            client.consume("m", "demo:*", group="g", start="beginning") as it,
        ):
            seen = []
            for item in it:
                seen.append(item.data["n"])
                if item.data["n"] == 2:
                    item.nak(reason="odd", give_up=True)
                    return seen
                item.ack()
        return []

    assert await asyncio.to_thread(work) == [0, 1, 2]
    assert [letter["message"] for letter in await letters(ksi, origin="group")] == ["odd"]


async def test_the_client_takes_what_waits_again_after_a_restart(tmp_path: Path) -> None:
    home = tmp_path / "var"
    async with asyncio.timeout(2 * PATIENCE_S):
        async with running_daemon(home=home) as ksi:
            client = AsyncClient(ksi.paths.socket)
            await client.__aenter__()
            await tell(ksi, *range(10))
            items = client.consume("c", "demo:*", start="beginning")
            first = await anext(items)
            await first.ack()
            second = await anext(items)
        async with running_daemon(home=home):
            await second.ack()  # on another connection: it counts all the same
            rest = [await anext(items) for _ in range(8)]
            with pytest.raises(KSIError):
                await client.call_raw("event:ack", {"cursors": ["x"]})
            await client.__aexit__(None, None, None)
    numbers = [item.data["n"] for item in rest]
    assert numbers in ([2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8])  # whichever was first


async def test_what_a_member_that_says_nothing_has_is_given_to_another() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi:
        await tell(ksi, 0, 1, 2)
        async with following(ksi, group="g", consumer="a", start="beginning", ack_wait_s=600) as silent:
            assert await silent.numbers(3) == [0, 1, 2]
            async with following(ksi, group="g", consumer="b", start="beginning") as other:
                await other.mark("caught_up")
                clock.advance(601)
                await tell(ksi, 3)
                items = await other.items(4)
                assert [(item["data"]["data"]["n"], item["data"]["attempt"]) for item in items] == [
                    (0, 2),
                    (1, 2),
                    (2, 2),
                    (3, 1),
                ]
                await other.ack(*items)
                assert await silent.is_given_nothing()
                await tell(ksi, 4)
                (last,) = await other.items(1)  # nothing was heard of the first since
                await other.ack(last)
            assert (await silent.ack(*items))["done"] == 0


async def test_a_jump_of_the_clock_takes_nothing_from_a_member() -> None:
    """As a machine that slept: the member did, too."""
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi:
        await tell(ksi, 0)
        async with following(ksi, consumer="c", start="beginning", ack_wait_s=600) as member:
            assert await member.numbers(1) == [0]
            clock.jump(3600)
            await tell(ksi, 1)
            assert await member.numbers(1) == [1]
            assert await member.is_given_nothing()
            clock.jump(-7200)
            clock.advance(601)
            await tell(ksi, 2)
            assert await member.numbers(3) == [0, 1, 2]


async def test_a_word_of_one_event_gives_time_for_all() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi:
        await tell(ksi, 0, 1, 2)
        async with following(ksi, consumer="c", start="beginning", ack_wait_s=600) as member:
            items = await member.items(3)
            for item in items[:2]:  # twice as long as one may take, in all
                clock.advance(500)
                assert (await member.ack(item))["done"] == 1
            await tell(ksi, 3)
            assert await member.numbers(1) == [3]
            assert await member.is_given_nothing()
            clock.advance(601)
            await tell(ksi, 4)
            again = await member.items(3)
            assert [(item["data"]["data"]["n"], item["data"]["attempt"]) for item in again] == [
                (2, 2),
                (3, 2),
                (4, 1),
            ]
            await member.ack(*again)
        found = await state(ksi, "c")
        assert (found["lag"], found["in_flight"], found["waiting_again"]) == (0, 0, 0)


async def test_what_nobody_ever_says_a_word_of_becomes_a_dead_letter(ksi: RunningDaemon) -> None:
    await tell(ksi, 0)
    async with following(ksi, consumer="c", start="beginning", ack_wait_s=0.1, max_attempts=2) as member:
        attempts = [item["data"]["attempt"] for item in await member.items(LOSSES_TOGETHER + 2)]
        assert attempts == list(range(1, LOSSES_TOGETHER + 3))

        async def buried() -> bool:
            return [letter["reason"] for letter in await letters(ksi)] == ["member_lost"]

        await eventually(buried)
