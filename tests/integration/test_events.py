"""``event:*``: what is told once is in the log once, in order, and can be found again."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from ksi_common.clock import format_time
from ksi_common.events import event
from ksi_common.messages import spec_of
from ksi_daemon.database import Transaction
from ksi_daemon.testing import FakeClock, RunningDaemon, Wire, running_daemon


async def publish(ksi: RunningDaemon, name: str = "demo:told", **rest: Any) -> dict[str, Any]:
    return await ksi.call_raw("event:publish", {"event": name, **rest})


async def append(ksi: RunningDaemon, stream: str, *numbers: int, **rest: Any) -> dict[str, Any]:
    events = [{"event": "demo:told", "data": {"n": n}} for n in numbers]
    return await ksi.call_raw("event:append", {"stream": stream, "events": events, **rest})


async def refused(ksi: RunningDaemon, asked: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Ask what is refused; give the code and the details."""
    async with ksi.connect() as wire:
        answer = await wire.call(asked, data)
    assert answer["type"] == "error", answer
    return answer["error"]["code"], answer["error"].get("details", {})


async def found(ksi: RunningDaemon, **question: Any) -> list[Any]:
    """Query the log; give the ``n`` of the data of what is found."""
    reply = await ksi.call_raw("event:query", question)
    assert reply["count"] == len(reply["events"])
    return numbers(reply["events"])


def numbers(events: Sequence[dict[str, Any]]) -> list[Any]:
    return [(stored["data"] or {}).get("n") for stored in events]


# Publish.


async def test_what_is_published_is_in_the_log_as_it_was_sent(ksi: RunningDaemon) -> None:
    data: dict[str, Any] = {
        "n": 1,
        "f": 1.0,
        "null": None,
        "text": "世界",
        "list": [[], {}],
        "": {"a:b": True},
    }
    async with ksi.connect() as wire:
        answer = await wire.call(
            "event:publish",
            {"event": "demo:told", "data": data, "event_id": "mine", "stream": "demo/1"},
            correlation_id="task-1",
            causation_id="turn-9",
        )
    published = answer["data"]
    stored = await ksi.call_raw("event:get", {"event_id": "mine"})
    assert json.dumps(stored.pop("data")) == json.dumps(data)
    assert stored.pop("time").endswith("Z")
    assert stored == {
        "event": "demo:told",
        "event_id": "mine",
        "kind": "notification",
        "seq": published["seq"],
        "cursor": published["cursor"],
        "stream": "demo/1",
        "version": 1,
        "correlation_id": "task-1",
        "causation_id": "turn-9",
        "actor": "owner",
        "removed": False,
        "raw": False,
    }


async def test_events_are_numbered_without_a_gap(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for n in range(64):
            wire.send({"event": "event:publish", "data": {"event": "demo:told", "data": {"n": n}}, "id": n})
        answers = [await wire.receive() for _ in range(64)]
    seqs = {answer["id"]: answer["data"]["seq"] for answer in answers}
    first = seqs[0]
    assert [seqs[n] for n in range(64)] == list(range(first, first + 64))


async def test_an_event_published_twice_is_stored_once(ksi: RunningDaemon) -> None:
    first = await publish(ksi, data={"n": 1}, event_id="once")
    again = await publish(ksi, data={"n": 1}, event_id="once")
    assert (first["deduplicated"], again["deduplicated"]) == (False, True)
    assert {**first, "deduplicated": True} == again
    assert await found(ksi, patterns=["demo:*"]) == [1]
    assert ksi.emitted("demo:*") == [{"n": 1}]


async def test_an_event_published_by_many_at_once_is_stored_once(ksi: RunningDaemon) -> None:
    """Within one commit, too, where the log does not have it yet."""
    async with ksi.connect() as wire:
        for _ in range(50):
            wire.send({"event": "event:publish", "data": {"event": "demo:told", "event_id": "once"}})
        replies = [(await wire.receive())["data"] for _ in range(50)]
    assert sum(not reply["deduplicated"] for reply in replies) == 1
    assert len({reply["seq"] for reply in replies}) == 1
    assert ksi.emitted("demo:*") == [{}]


@pytest.mark.parametrize(
    "other",
    [
        {"event": "demo:other"},
        {"data": {"n": 2}},
        {"data": {"n": 1.0}},
        {"stream": "demo/1"},
    ],
)
async def test_an_id_used_for_something_else_is_refused(ksi: RunningDaemon, other: dict[str, Any]) -> None:
    same = {"event": "demo:told", "data": {"n": 1}, "event_id": "taken"}
    await ksi.call_raw("event:publish", same)
    code, details = await refused(ksi, "event:publish", {**same, **other})
    assert (code, details["reason"]) == ("ALREADY_EXISTS", "id_reused")
    assert (await ksi.call_raw("event:get", {"event_id": "taken"}))["data"] == {"n": 1}


async def test_the_id_of_a_request_is_not_free_for_an_event(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:set", {"key": "a", "value": 1})
    asked = (await ksi.call_raw("event:query", {"kind": "request"}))["events"][0]
    same = {"event": "demo:told", "event_id": asked["event_id"]}
    code, _ = await refused(ksi, "event:publish", same)
    assert code == "ALREADY_EXISTS"


async def test_what_is_ephemeral_is_told_and_never_stored(ksi: RunningDaemon) -> None:
    before = await publish(ksi, data={"n": 0})
    reply = await publish(ksi, data={"n": 1}, event_id="gone", ephemeral=True)
    after = await publish(ksi, data={"n": 2})
    assert reply == {"event_id": "gone", "seq": None, "cursor": None, "deduplicated": False}
    assert after["seq"] == before["seq"] + 1
    assert ksi.emitted("demo:*") == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert await found(ksi, patterns=["demo:*"]) == [2, 0]
    assert (await refused(ksi, "event:get", {"event_id": "gone"}))[0] == "NOT_FOUND"


# What plugins tell.


@pytest.mark.parametrize("name", ["state:changed", "state:removed", "state:cleared", "system:started"])
@pytest.mark.parametrize("rest", [{}, {"ephemeral": True}])
async def test_what_a_plugin_tells_cannot_be_forged(
    ksi: RunningDaemon, name: str, rest: dict[str, Any]
) -> None:
    forged = {"event": name, "data": {"namespace": "global", "key": "a", "value": 1}}
    told = len(ksi.events(name))
    code, details = await refused(ksi, "event:publish", {**forged, **rest})
    assert (code, details["reason"]) == ("PERMISSION_DENIED", "declared_event")
    appended = {"stream": "demo/1", "events": [{"event": "demo:told"}, forged]}
    assert (await refused(ksi, "event:append", appended))[0] == "PERMISSION_DENIED"
    assert len(ksi.events(name)) == told
    assert ksi.events("demo:*") == []


async def test_every_notification_that_is_declared_is_refused(ksi: RunningDaemon) -> None:
    declared = [spec_of(told).name for told in ksi.daemon.catalog.notifications.values()]
    assert {"state:changed", "system:started", "system:stopping", "timer:failed"} <= set(declared)
    for name in declared:
        assert (await refused(ksi, "event:publish", {"event": name}))[0] == "PERMISSION_DENIED"


@pytest.mark.parametrize("name", ["state:set", "event:publish", "event:subscribe", "system:shutdown"])
async def test_what_is_asked_cannot_be_told(ksi: RunningDaemon, name: str) -> None:
    code, details = await refused(ksi, "event:publish", {"event": name})
    assert (code, details["reason"]) == ("INVALID_ARGUMENT", "not_a_notification")


@pytest.mark.parametrize("asked", ["state:changed", "system:started", "demo:told"])
async def test_what_is_told_cannot_be_asked(ksi: RunningDaemon, asked: str) -> None:
    assert (await refused(ksi, asked, {}))[0] in {"NOT_FOUND", "INVALID_ARGUMENT", "PERMISSION_DENIED"}
    assert [told for told in ksi.events(asked) if told.actor != "system"] == []


@pytest.mark.parametrize(
    "name", ["", "demo", "demo:", ":told", "Demo:told", "demo:*", "demo told", "a:" * 200]
)
async def test_what_is_no_event_name_is_refused(ksi: RunningDaemon, name: str) -> None:
    assert (await refused(ksi, "event:publish", {"event": name}))[0] == "INVALID_ARGUMENT"


# Append.


@pytest.mark.parametrize(
    ("there", "expected", "fits"),
    [
        (0, "any", True),
        (0, "none", True),
        (0, "exists", False),
        (0, 0, True),
        (0, 1, False),
        (2, "any", True),
        (2, "none", False),
        (2, "exists", True),
        (2, 0, False),
        (2, 1, False),
        (2, 2, True),
        (2, 3, False),
    ],
)
async def test_an_append_needs_the_version_that_it_expects(
    ksi: RunningDaemon, there: int, expected: str | int, fits: bool
) -> None:
    if there:
        await append(ksi, "demo/1", *range(there))
    data = {"stream": "demo/1", "events": [{"event": "demo:more"}] * 3, "expected_version": expected}
    if fits:
        assert (await ksi.call_raw("event:append", data))["version"] == there + 3
    else:
        wrong = {"reason": "wrong_version", "expected": expected, "actual": there}
        assert await refused(ksi, "event:append", data) == ("FAILED_PRECONDITION", wrong)
    assert len(ksi.events("demo:more")) == (3 if fits else 0)


async def test_of_many_that_expect_the_same_version_one_appends(ksi: RunningDaemon) -> None:
    data = {"stream": "demo/1", "events": [{"event": "demo:told"}], "expected_version": 0}
    async with ksi.connect() as wire:
        for _ in range(32):
            wire.send({"event": "event:append", "data": data})
        answers = [await wire.receive() for _ in range(32)]
    assert [answer["type"] for answer in answers].count("reply") == 1
    codes = {answer["error"]["code"] for answer in answers if answer["type"] == "error"}
    assert codes == {"FAILED_PRECONDITION"}
    assert len(ksi.events("demo:told")) == 1


async def test_an_append_is_all_or_none(ksi: RunningDaemon) -> None:
    await publish(ksi, "demo:other", event_id="taken")
    events = [{"event": "demo:told", "event_id": "new"}, {"event": "demo:told", "event_id": "taken"}]
    code, details = await refused(ksi, "event:append", {"stream": "demo/1", "events": events})
    assert (code, details["reason"]) == ("ALREADY_EXISTS", "id_reused")
    assert ksi.events("demo:told") == []
    assert (await append(ksi, "demo/1", 1, expected_version="none"))["version"] == 1


async def test_an_append_twice_is_one(ksi: RunningDaemon) -> None:
    events = [{"event": "demo:told", "data": {"n": n}, "event_id": f"e{n}"} for n in range(3)]
    data = {"stream": "demo/1", "events": events, "expected_version": 0}
    first = await ksi.call_raw("event:append", data)
    again = await ksi.call_raw("event:append", data)
    assert again == {**first, "deduplicated": True}
    assert first["event_ids"] == ["e0", "e1", "e2"]
    assert len(ksi.events("demo:told")) == 3


async def test_an_append_that_is_new_in_part_needs_its_version_too(ksi: RunningDaemon) -> None:
    known = {"event": "demo:told", "event_id": "known"}
    await ksi.call_raw("event:append", {"stream": "demo/1", "events": [known]})
    new = {"stream": "demo/1", "events": [known, {"event": "demo:more"}], "expected_version": 0}
    assert (await refused(ksi, "event:append", new))[0] == "FAILED_PRECONDITION"
    assert ksi.events("demo:more") == []


async def test_streams_are_counted_each_on_its_own(ksi: RunningDaemon) -> None:
    versions = [
        (await append(ksi, stream, n))["version"]
        for n, stream in enumerate(["a/1", "a/2", "a/1", "a", "a/1/b"])
    ]
    assert versions == [1, 1, 2, 1, 1]


@pytest.mark.parametrize("stream", ["", "/", "a/", "/a", "a//b", "a b", "a:b", "../a", "a/..", "x" * 257])
async def test_what_is_no_stream_name_is_refused(ksi: RunningDaemon, stream: str) -> None:
    assert (await refused(ksi, "event:read", {"stream": stream}))[0] == "INVALID_ARGUMENT"


# Read.


@pytest.mark.parametrize("limit", [1, 2, 3, 9, 10, 11])
@pytest.mark.parametrize("direction", ["forwards", "backwards"])
async def test_a_stream_read_by_pages_has_every_event_once(
    ksi: RunningDaemon, direction: str, limit: int
) -> None:
    await append(ksi, "demo/other", 77)
    await append(ksi, "demo/1", *range(6))
    await publish(ksi, data={"n": 78})
    await append(ksi, "demo/1", *range(6, 10))
    events: list[dict[str, Any]] = []
    version: int | None = None
    while True:
        question = {"stream": "demo/1", "direction": direction, "limit": limit, "from_version": version}
        page = await ksi.call_raw("event:read", question)
        assert page["count"] == len(page["events"]) <= limit
        events += page["events"]
        version = page["next_version"]
        if version is None:
            break
    order = slice(None) if direction == "forwards" else slice(None, None, -1)
    assert numbers(events) == list(range(10))[order]
    assert [stored["version"] for stored in events] == list(range(1, 11))[order]


async def test_a_read_begins_with_the_version_that_is_named(ksi: RunningDaemon) -> None:
    await append(ksi, "demo/1", *range(1, 6))

    async def read(**question: Any) -> list[Any]:
        return numbers((await ksi.call_raw("event:read", {"stream": "demo/1", **question}))["events"])

    assert await read(from_version=4) == [4, 5]
    assert await read(from_version=2, direction="backwards") == [2, 1]
    assert await read(from_version=6) == []
    assert await read(from_version=9, direction="backwards") == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
async def test_a_read_goes_on_over_what_is_damaged_and_names_what_is_not_there(
    ksi: RunningDaemon, direction: str
) -> None:
    await append(ksi, "demo/1", *range(1, 6))
    seqs = [stored["seq"] for stored in (await ksi.call_raw("event:read", {"stream": "demo/1"}))["events"]]

    def damage(tx: Transaction) -> None:
        tx.execute("UPDATE log SET data = '{}' WHERE seq IN (?, ?)", (seqs[0], seqs[4]))
        tx.execute("DELETE FROM log WHERE seq = ?", (seqs[2],))

    await ksi.daemon.database.write(damage)
    found: list[Any] = []
    damaged: list[Any] = []
    question: dict[str, Any] = {"stream": "demo/1", "direction": direction, "limit": 1}
    while True:
        page = await ksi.call_raw("event:read", question)
        found += numbers(page["events"])
        damaged += page["damaged"]
        if page["next_version"] is None:
            break
        question["from_version"] = page["next_version"]
    assert found == ([2, 4] if direction == "forwards" else [4, 2])
    assert {one["seq"] for one in damaged} == {seqs[0], seqs[4], None}
    lost = next(one for one in damaged if one["seq"] is None)
    assert (lost["reason"], lost["detail"]) == ("event_missing", "version 3 of demo/1 is not there")


async def test_a_stream_that_is_not_there_is_empty(ksi: RunningDaemon) -> None:
    page = await ksi.call_raw("event:read", {"stream": "demo/nothing"})
    assert (page["events"], page["count"], page["next_version"], page["damaged"]) == ([], 0, None, [])


# Query.


async def test_a_query_finds_by_pattern(ksi: RunningDaemon) -> None:
    names = ("demo:told", "demo:told:more", "demo:tolder", "demo:other", "demos:told", "demo_a:told")
    for n, name in enumerate(names):
        await publish(ksi, name, data={"n": n})

    async def of(*patterns: str) -> list[Any]:
        return await found(ksi, patterns=list(patterns), reverse=False, kind="notification")

    assert await of("demo:told") == [0]
    assert await of("demo:told*") == [0, 1, 2]
    assert await of("demo:told:*") == [1]
    assert await of("demo:*") == [0, 1, 2, 3]
    assert await of("demo*") == [0, 1, 2, 3, 4, 5]
    assert await of("demo:other", "demos:*", "demos:told") == [3, 4]
    assert await of("demo:nothing") == []


async def test_a_query_finds_by_stream(ksi: RunningDaemon) -> None:
    await append(ksi, "demo/1", 1, 2)
    await append(ksi, "demo/2", 3)
    assert await found(ksi, stream="demo/1") == [2, 1]
    assert await found(ksi, stream="demo") == []


async def test_a_query_finds_by_correlation_id(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for n in range(4):
            data = {"event": "demo:told", "data": {"n": n}}
            await wire.call("event:publish", data, correlation_id=f"task-{n % 2}")
    assert await found(ksi, correlation_id="task-1") == [3, 1]
    assert await found(ksi, correlation_id="task-9") == []


async def test_a_query_finds_by_kind(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:set", {"key": "a", "value": 1})
    asked = await ksi.call_raw("event:query", {"patterns": ["state:*"], "kind": "request"})
    told = await ksi.call_raw("event:query", {"patterns": ["state:*"], "kind": "notification"})
    both = await ksi.call_raw("event:query", {"patterns": ["state:*"], "reverse": False})
    assert [(e["event"], e["kind"], e["data"]) for e in asked["events"]] == [("state:set", "request", None)]
    assert [(e["event"], e["kind"]) for e in told["events"]] == [("state:changed", "notification")]
    assert sorted(e["event"] for e in both["events"]) == ["state:changed", "state:set"]


async def test_what_is_safe_is_not_in_the_log(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:get", {"key": "a"})
    await ksi.call_raw("event:query", {})
    assert (await ksi.call_raw("event:query", {"kind": "request"}))["count"] == 0


@pytest.mark.parametrize("name", ["agent_id", "client_id"])
async def test_a_query_finds_by_actor_under_its_old_name_too(ksi: RunningDaemon, name: str) -> None:
    await publish(ksi, data={"n": 1})
    assert await found(ksi, patterns=["demo:*"], **{name: "owner"}) == [1]
    assert await found(ksi, patterns=["demo:*"], **{name: "system"}) == []
    assert "system:started" in [
        stored["event"] for stored in (await ksi.call_raw("event:query", {name: "system"}))["events"]
    ]


async def test_a_query_finds_by_time() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi:
        times = []
        for n in range(5):
            clock.advance(10)
            times.append(format_time(clock.time_us()))
            await publish(ksi, data={"n": n})
        demo = {"patterns": ["demo:*"], "reverse": False}
        assert await found(ksi, **demo, since=times[2]) == [2, 3, 4]
        assert await found(ksi, **demo, until=times[2]) == [0, 1]
        assert await found(ksi, **demo, since=times[1], until=times[3]) == [1, 2]
        assert await found(ksi, **demo, since=times[2], until=times[2]) == []


@pytest.mark.parametrize("time", ["yesterday", "2026-01-31T12:00:00", "12", ""])
async def test_what_is_no_time_is_refused(ksi: RunningDaemon, time: str) -> None:
    assert (await refused(ksi, "event:query", {"since": time}))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("limit", [1, 3, 9, 10, 11])
@pytest.mark.parametrize("reverse", [True, False])
async def test_a_query_by_pages_has_every_event_once(ksi: RunningDaemon, limit: int, reverse: bool) -> None:
    for n in range(10):
        await publish(ksi, data={"n": n})
        await publish(ksi, "other:told")
    question: dict[str, Any] = {"patterns": ["demo:*"], "limit": limit, "reverse": reverse}
    events: list[dict[str, Any]] = []
    while True:
        page = await ksi.call_raw("event:query", question)
        assert page["count"] == len(page["events"]) <= limit
        events += page["events"]
        question["cursor"] = page["next"]
        if page["next"] is None:
            break
        await publish(ksi, "other:told")
    assert numbers(events) == list(range(10))[:: -1 if reverse else 1]


async def fill(wire: Wire, count: int, size: int) -> None:
    """Append events so large that few of them fit into an answer."""
    for n in range(count):
        data = {"stream": "demo/1", "events": [{"event": "demo:told", "data": {"n": n, "x": "x" * size}}]}
        await wire.call("event:append", data)


@pytest.mark.parametrize(
    ("asked", "place"),
    [("event:query", {"patterns": ["demo:*"], "reverse": False}), ("event:read", {"stream": "demo/1"})],
)
async def test_a_page_of_large_events_is_answered(
    ksi: RunningDaemon, asked: str, place: dict[str, Any]
) -> None:
    """Lists page by bytes, too: what does not fit into an answer is on the next page."""
    async with ksi.connect() as wire:
        await fill(wire, 5, 900_000)
        page = (await wire.call(asked, place))["data"]
    assert numbers(page["events"]) == [0, 1]


async def test_a_cursor_of_another_log_is_refused(ksi: RunningDaemon) -> None:
    async with running_daemon() as other:
        cursor = (await publish(other))["cursor"]
    code, details = await refused(ksi, "event:query", {"cursor": cursor})
    assert (code, details["reason"]) == ("INVALID_ARGUMENT", "other_log")
    code, details = await refused(ksi, "event:query", {"cursor": "no cursor"})
    assert (code, details["reason"]) == ("INVALID_ARGUMENT", "bad_cursor")


# Get.


async def test_an_event_that_is_not_there_is_not_found(ksi: RunningDaemon) -> None:
    assert await refused(ksi, "event:get", {"event_id": "nothing"}) == (
        "NOT_FOUND",
        {"event_id": "nothing"},
    )


async def test_a_request_is_read_by_its_id_without_its_data(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:set", {"key": "a", "value": "secret"})
    (asked,) = (await ksi.call_raw("event:query", {"patterns": ["state:set"]}))["events"]
    assert await ksi.call_raw("event:get", {"event_id": asked["event_id"]}) == asked
    assert (asked["kind"], asked["data"]) == ("request", None)


async def test_publishing_leaves_one_row_and_no_row_of_the_request(ksi: RunningDaemon) -> None:
    async with asyncio.TaskGroup() as tasks:
        for n in range(10):
            tasks.create_task(ksi.bus.call(event.Publish(event="demo:told", data={"n": n})))
    everything = (await ksi.call_raw("event:query", {"kind": "request"}))["events"]
    assert everything == []
    assert sorted(await found(ksi, patterns=["demo:*"])) == list(range(10))
