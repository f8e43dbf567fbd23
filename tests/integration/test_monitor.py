"""``monitor:*`` and ``correlation:*`` over the socket: the log under names that users know."""

import asyncio
import json
from typing import Any

import pytest

from ksi_common.clock import format_time
from ksi_daemon.testing import PATIENCE_S, FakeClock, RunningDaemon, Wire, running_daemon

from .conftest import WritePlugin

CHAIN = """
    from ksi_daemon.plugin import Bus, Database, Message, Notification, Request, handler, subscriber

    class Done(Message):
        '''It is done.'''

    class Work(Request[Done], event="chain:work"):
        '''Work.'''

    class Began(Notification, event="chain:began"):
        '''It began.'''

    class Result(Notification, event="chain:result"):
        '''It has a result.'''
        value: int

    class Failed(Notification, event="chain:failed"):
        '''It failed.'''
        why: str

    @handler
    async def work(request: Work, bus: Bus) -> Done:
        await bus.notify(Began())
        return Done()

    @subscriber
    async def go_on(event: Began, bus: Bus) -> None:
        await bus.notify(Result(value=7))

    @subscriber
    async def fail(event: Result, bus: Bus) -> None:
        await bus.notify(Failed(why="no luck"))
"""


async def call(wire: Wire, event: str, **data: Any) -> dict[str, Any]:
    answer = await wire.call(event, data)
    assert answer["type"] == "reply", answer
    reply: dict[str, Any] = answer["data"]
    return reply


async def fill(wire: Wire, count: int) -> None:
    for n in range(count):
        await call(wire, "state:set", key=f"k{n}", value=n)


# Events


async def test_events_are_found_the_newest_first_and_by_pages(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        await fill(wire, 5)
        first = await call(wire, "monitor:get_events", event_patterns=["state:changed"], limit=2)
        assert [event["data"]["key"] for event in first["events"]] == ["k4", "k3"]
        rest = await call(
            wire, "monitor:get_events", event_patterns=["state:changed"], cursor=first["next"], limit=9
        )
        assert [event["data"]["key"] for event in rest["events"]] == ["k2", "k1", "k0"]
        assert rest["next"] is None
        forwards = await call(wire, "monitor:get_events", event_patterns=["state:*"], reverse=False)
        assert [event["kind"] for event in forwards["events"]] == ["request", "notification"] * 5
        same = await call(wire, "event:query", patterns=["state:*"], reverse=False)
        assert forwards["events"] == same["events"]
        assert forwards["total_events"] == ksi.daemon.hub.head
        assert first["query"] == {
            "event_patterns": ["state:changed"], "agent_id": None, "since": None, "until": None, "limit": 2,
            "reverse": True,
        }  # fmt: skip


async def test_a_time_is_text_or_seconds_since_1970(write_plugin: WritePlugin) -> None:
    clock = FakeClock()
    start_us = clock.time_us()
    async with running_daemon(clock=clock) as ksi, ksi.connect() as wire:
        for n in range(4):
            await call(wire, "state:set", key="k", value=n)
            clock.advance(10)
        query = {"event_patterns": ["state:changed"], "reverse": False}
        since, until = start_us + 10_000_000, start_us + 30_000_000
        text = await call(
            wire, "monitor:get_events", **query, since=format_time(since), until=format_time(until)
        )
        number = await call(wire, "monitor:get_events", **query, since=since / 1e6, until=until / 1e6)
    assert [event["data"]["value"] for event in text["events"]] == [1, 2]
    assert (number["events"], number["query"]) == (text["events"], text["query"])


async def test_a_time_of_long_ago_is_a_time(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        found = await call(wire, "monitor:get_events", since="0900-01-01T00:00:00Z")
    assert found["query"]["since"] == "0900-01-01T00:00:00.000000Z"


async def test_client_id_is_the_old_name_of_agent_id(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        await fill(wire, 1)
        mine = await call(wire, "monitor:get_events", client_id="owner")
        nobody = await call(wire, "monitor:get_events", agent_id="nobody")
    assert (mine["query"]["agent_id"], nobody["count"]) == ("owner", 0)
    assert {event["actor"] for event in mine["events"]} == {"owner"}


async def test_a_reply_ends_where_it_has_bytes_enough_and_can_be_read_on(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for n in range(4):
            await call(wire, "state:set", key=f"k{n}", value="x" * 900_000)
        query: dict[str, Any] = {"event_patterns": ["state:changed"], "limit": 100}
        pages = [await call(wire, "monitor:get_events", **query)]
        while (following := pages[-1]["next"]) is not None:
            pages.append(await call(wire, "monitor:get_events", **query, cursor=following))
    assert [len(page["events"]) for page in pages] == [2, 2]
    assert [event["data"]["key"] for page in pages for event in page["events"]] == ["k3", "k2", "k1", "k0"]


@pytest.mark.parametrize(
    "fields",
    [{"since": "yesterday"}, {"since": -1}, {"since": "0001-01-01T00:00:00+01:00"}, {"until": 1e300},
     {"event_patterns": ["A"]}, {"cursor": "x"}, {"cursor": "00000000-1"}, {"limit": 0},
     {"query": "SELECT 1"}],
)  # fmt: skip
async def test_what_is_no_question_is_refused(ksi: RunningDaemon, fields: dict[str, Any]) -> None:
    async with ksi.connect() as wire:
        assert (await wire.call("monitor:get_events", fields))["error"]["code"] == "INVALID_ARGUMENT"


# Following


async def follow(wire: Wire, ident: str, **data: Any) -> None:
    wire.send({"event": "monitor:subscribe", "id": ident, "data": data})
    assert (await wire.receive())["type"] == "caught_up"


async def test_a_subscription_is_live_from_now_on(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        await fill(wire, 1)
        await follow(wire, "s", client_id="tui", event_patterns=["state:changed"])
        wire.send({"event": "state:set", "id": "w", "data": {"key": "new", "value": 1}})
        frames = {(frame := await wire.receive())["id"]: frame for _ in range(2)}
        assert frames["s"]["type"] == "item"
        assert frames["s"]["data"]["data"]["key"] == "new"
        cursor = frames["s"]["cursor"]
        await fill(wire, 1)
        again = {"patterns": ["state:changed"], "start": {"cursor": cursor}}
        async with ksi.connect() as other:
            other.send({"event": "event:subscribe", "id": "e", "data": again})
            assert (await other.receive())["data"]["data"]["key"] == "k0"


@pytest.mark.parametrize(
    ("wish", "ended"),
    [
        ({"client_id": "a"}, {"1", "2"}),
        ({"agent_id": "b"}, {"3"}),
        ({"subscription_id": "x"}, {"2", "3"}),
        ({"agent_id": "a", "subscription_id": "x"}, {"2"}),
        ({"agent_id": "nobody"}, set()),
        ({}, {"1", "2", "3", "4"}),
    ],
)
async def test_unsubscribing_ends_what_it_means_and_nothing_else(
    ksi: RunningDaemon, wish: dict[str, str], ended: set[str]
) -> None:
    async with ksi.connect() as wire, ksi.connect() as other:
        await follow(wire, "1", agent_id="a")
        await follow(wire, "2", agent_id="a", subscription_id="x")
        await follow(wire, "3", agent_id="b", subscription_id="x")
        await follow(wire, "4")
        await follow(other, "elsewhere", agent_id="a", subscription_id="x")
        wire.send({"event": "monitor:unsubscribe", "id": "u", "data": wish})
        frames = [await wire.receive() for _ in range(len(ended) + 1)]
        assert {frame["id"] for frame in frames[:-1]} == ended
        assert {frame["type"] for frame in frames[:-1]} <= {"end"}
        assert frames[-1]["data"]["ended"] == len(ended)
        assert frames[-1]["data"]["status"] == ("unsubscribed" if ended else "not_found")
        await ksi.call_raw("state:set", {"key": "k", "value": 1})
        heard = {(await wire.receive())["id"] for _ in range(4 - len(ended))}
        assert heard == {"1", "2", "3", "4"} - ended
        assert (await other.receive())["type"] == "item"


async def test_what_is_ended_twice_or_cancelled_meanwhile_ends_once(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        await follow(wire, "s", agent_id="a")
        wire.send({"event": "monitor:unsubscribe", "id": "u1"})
        wire.send({"type": "cancel", "id": "s"})
        wire.send({"event": "monitor:unsubscribe", "id": "u2"})
        frames = [await wire.receive() for _ in range(3)]
        assert sorted(frame["id"] for frame in frames) == ["s", "u1", "u2"]
        assert sum(frame.get("data", {}).get("ended", 0) for frame in frames) == 1
        await follow(wire, "s", agent_id="a")


async def test_a_connection_that_is_gone_is_forgotten(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        await follow(wire, "s", agent_id="a")
        assert (await ksi.call_raw("monitor:get_stats"))["subscriptions"]["count"] == 1
    async with ksi.connect() as wire, asyncio.timeout(PATIENCE_S):
        while (await call(wire, "monitor:get_stats"))["subscriptions"]["count"]:
            pass


async def test_json_rpc_can_unsubscribe_too(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        wire.send({"jsonrpc": "2.0", "id": 1, "method": "monitor:subscribe", "params": {"agent_id": "a"}})
        assert (await wire.receive())["method"] == "$/caught_up"
        wire.send({"jsonrpc": "2.0", "id": 2, "method": "monitor:unsubscribe", "params": {"agent_id": "a"}})
        assert await wire.receive() == {"jsonrpc": "2.0", "id": 1, "result": None}
        assert (await wire.receive())["result"]["ended"] == 1


# Figures


async def test_figures_are_those_of_the_log_and_of_who_follows(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        await follow(wire, "s")
        before = await call(wire, "monitor:get_stats")
        async with ksi.connect() as other:
            await fill(other, 3)
            stats = await call(other, "monitor:get_stats")
    log = stats["event_log"]
    assert log["head"] == before["event_log"]["head"] + 6 == ksi.daemon.hub.head
    assert log["last_minute"] == log["head"]
    assert sum(log["by_kind"].values()) == log["head"]
    assert log["by_kind"]["request"] == 3
    assert log["rate_per_s"] == round(log["head"] / 60, 3)
    assert log["database_bytes"] == ksi.paths.database.stat().st_size or log["database_bytes"] > 4096
    assert stats["subscriptions"]["count"] == 1
    assert stats["subscriptions"]["slow"] == 0
    assert stats["writer"]["units"] > before["writer"]["units"]
    assert stats["router"]["events"] == len(ksi.daemon.catalog.routes)


async def test_a_minute_later_the_last_minute_is_empty() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi, ksi.connect() as wire:
        await fill(wire, 2)
        clock.advance(61)
        log = (await call(wire, "monitor:get_stats"))["event_log"]
        assert (log["last_minute"], log["rate_per_s"], log["by_kind"]) == (
            0, 0.0, {"notification": 0, "request": 0},
        )  # fmt: skip
        assert log["head"] > 4


# Sessions


async def completed(wire: Wire, ksi: RunningDaemon, session: str) -> None:
    wire.send({"event": "completion:stream", "id": "c", "data": {"prompt": "Say hi", "session_id": session,
               "max_tokens": 2}})  # fmt: skip
    async with asyncio.timeout(90):
        while json.loads(await wire.reader.readline())["type"] != "end":
            pass


@pytest.mark.timeout(300)
async def test_the_events_of_a_session_are_found_and_no_others(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for session in ("one", "two", "one"):
            await completed(wire, ksi, session)
        found = await call(wire, "monitor:get_session_events", session_id="one", reverse=False)
        told = [event for event in found["events"] if event["kind"] == "notification"]
        assert {event["data"]["session_id"] for event in told} == {"one"}
        assert [event["event"] for event in found["events"]] == [
            "completion:stream", "completion:accepted", "completion:started", "completion:result",
        ] * 2  # fmt: skip
        assert len(found["sources"]) == 2
        assert found["next_offset"] is None
        back = await call(wire, "monitor:get_session_events", session_id="one")
        assert back["events"] == found["events"][::-1]
        page = await call(wire, "monitor:get_session_events", session_id="one", limit=2)
        assert [event["event"] for event in page["events"]] == [
            event["event"] for event in back["events"][:4]
        ]
        rest = await call(
            wire, "monitor:get_session_events", session_id="one", limit=2, offset=page["next_offset"]
        )
        assert page["events"] + rest["events"] == back["events"]
        assert rest["next_offset"] is None
        past = await call(wire, "monitor:get_session_events", session_id="one", offset=100)
        assert (past["events"], past["next_offset"]) == ([], None)


async def test_a_session_that_there_is_not_is_not_found(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        answer = await wire.call("monitor:get_session_events", {"session_id": "nobody"})
    assert answer["error"]["code"] == "NOT_FOUND"


# Correlations


@pytest.fixture
async def chained(write_plugin: WritePlugin) -> Any:
    """A daemon, and the correlation id of a request that three events followed."""
    async with running_daemon(plugins=[write_plugin(CHAIN, "chain")]) as ksi, ksi.connect() as wire:
        async with asyncio.timeout(PATIENCE_S):
            failed = ksi.bus.subscribe("chain:failed")
            correlation_id = (await wire.call("chain:work"))["correlation_id"]
            await anext(aiter(failed))
        await fill(wire, 1)
        yield ksi, wire, correlation_id


async def test_a_chain_has_each_event_with_its_depth(chained: Any) -> None:
    _, wire, correlation_id = chained
    chain = await call(wire, "correlation:chain", correlation_id=correlation_id)
    steps = {step["event_name"]: step for step in chain["chain"]}
    assert {name: step["depth"] for name, step in steps.items()} == {
        "chain:work": 0, "chain:began": 1, "chain:result": 2, "chain:failed": 3,
    }  # fmt: skip
    assert chain["chain_length"] == 4
    seqs = [step["seq"] for step in chain["chain"]]
    assert seqs == sorted(seqs)
    assert steps["chain:result"]["causation_id"] == steps["chain:began"]["event_id"]
    assert all(step["elapsed_ms"] >= 0 for step in steps.values())
    assert chain == await call(wire, "monitor:get_correlation_chain", correlation_id=correlation_id,
                               include_memory=True)  # fmt: skip
    short = await call(wire, "correlation:chain", correlation_id=correlation_id, limit=2)
    assert (short["chain_length"], short["truncated"]) == (2, True)
    exact = await call(wire, "correlation:chain", correlation_id=correlation_id, limit=4)
    assert (exact["chain_length"], exact["truncated"]) == (4, False)


async def test_a_tree_has_each_event_below_its_cause(chained: Any) -> None:
    _, wire, correlation_id = chained
    tree = await call(wire, "correlation:tree", correlation_id=correlation_id)
    names, level = [], tree["tree"]
    while level:
        (branch,) = level
        names.append(branch["event_name"])
        level = branch["children"]
    assert names == ["chain:work", "chain:began", "chain:result", "chain:failed"]
    assert (tree["count"], tree["truncated"]) == (4, False)


async def test_a_trace_tells_how_a_request_went(chained: Any) -> None:
    _, wire, correlation_id = chained
    trace = await call(wire, "correlation:trace", correlation_id=correlation_id)
    assert (trace["event_name"], trace["parent_id"], trace["data"]) == ("chain:work", None, None)
    assert [child["event_name"] for child in trace["children"]] == ["chain:began"]
    assert (trace["events"], trace["result"], trace["error"]) == (4, {"value": 7}, {"why": "no luck"})
    assert trace["created_at"] <= trace["completed_at"]
    assert trace["duration_ms"] >= 0


async def test_a_trace_of_something_told_has_its_data(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        wire.send({"event": "event:publish", "id": 1, "correlation_id": "mine", "causation_id": "before",
                   "data": {"event": "demo:told", "data": {"n": 1}}})  # fmt: skip
        await wire.receive()
        trace = await call(wire, "correlation:trace", correlation_id="mine")
    assert (trace["event_name"], trace["data"], trace["parent_id"]) == ("demo:told", {"n": 1}, "before")


async def test_the_error_of_a_trace_is_what_was_said_last(ksi: RunningDaemon) -> None:
    errors = []
    async with ksi.connect() as wire:
        for event, data in (("job:failed", {"n": 1}), ("job:cancelled", {"n": 2}), ("job:failed", {})):
            told = {"event": event, "data": data}
            assert (await wire.call("event:publish", told, correlation_id="c"))["type"] == "reply"
            errors.append((await call(wire, "correlation:trace", correlation_id="c"))["error"])
    assert errors == [{"n": 1}, {"n": 2}, {}]


async def test_what_leaves_no_trace_has_none(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        assert (await wire.call("correlation:trace"))["error"]["details"]["reason"] == "unknown_correlation"
        assert (await call(wire, "correlation:tree", correlation_id="none"))["tree"] == []
        assert (await call(wire, "correlation:chain", correlation_id="none"))["chain"] == []


async def test_a_circle_that_a_client_made_has_an_end(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for mine, cause in (("one", "two"), ("two", "one")):
            wire.send({"event": "event:publish", "id": mine, "correlation_id": "c", "causation_id": cause,
                       "data": {"event": "demo:told", "event_id": mine}})  # fmt: skip
            assert (await wire.receive())["type"] == "reply"
        tree = (await call(wire, "correlation:tree", correlation_id="c"))["tree"]
    assert [(branch["event_id"], branch["children"][0]["event_id"]) for branch in tree] == [("one", "two")]


async def test_a_chain_longer_than_a_page_is_read_whole(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        events = [{"event": "demo:told"}] * 1000
        for stream in ("demo/1", "demo/2", "demo/3"):
            wire.send({"event": "event:append", "id": stream, "correlation_id": "c",
                       "data": {"stream": stream, "events": events}})  # fmt: skip
            assert (await wire.receive())["type"] == "reply"
        chain = await call(wire, "correlation:chain", correlation_id="c", limit=10_000)
        trace = await call(wire, "correlation:trace", correlation_id="c")
    assert (chain["chain_length"], chain["truncated"], trace["events"]) == (3000, False, 3000)


async def test_figures_of_correlations_are_of_the_newest_events(chained: Any) -> None:
    ksi, wire, correlation_id = chained
    figures = (await call(wire, "correlation:stats"))["correlation_stats"]
    assert figures["events"] == ksi.daemon.hub.head
    assert figures["largest"][0]["correlation_id"] == correlation_id
    assert figures["largest"][0]["events"] == 4
    assert figures["mean_events"] == round(figures["events"] / figures["correlations"], 3)


async def test_a_request_is_told_its_own_ids(chained: Any) -> None:
    _, wire, correlation_id = chained
    alone = await call(wire, "correlation:current")
    assert alone["current_correlation_id"] == alone["event_id"]
    assert (alone["parent_correlation_id"], alone["causation_id"]) == (None, None)
    answer = await wire.call("correlation:current", {}, correlation_id="mine", causation_id=correlation_id)
    assert answer["data"]["current_correlation_id"] == "mine"
    assert answer["data"]["parent_correlation_id"] == correlation_id
    assert answer["data"]["causation_id"] == correlation_id


async def test_what_is_damaged_is_counted_and_the_rest_is_told(chained: Any) -> None:
    ksi, wire, correlation_id = chained
    before = await call(wire, "correlation:chain", correlation_id=correlation_id)
    (result,) = [step for step in before["chain"] if step["event_name"] == "chain:result"]
    await ksi.daemon.database.write_apart(
        lambda tx: tx.execute("UPDATE log SET data = '{\"value\":8}' WHERE seq = ?", (result["seq"],))
    )
    chain = await call(wire, "correlation:chain", correlation_id=correlation_id)
    tree = await call(wire, "correlation:tree", correlation_id=correlation_id)
    trace = await call(wire, "correlation:trace", correlation_id=correlation_id)
    found = await call(wire, "monitor:get_events", event_patterns=["chain:*"])
    assert [said["damaged"] for said in (before, chain, tree, trace)] == [0, 1, 1, 1]
    assert (chain["chain_length"], tree["count"], trace["events"], trace["result"]) == (3, 3, 3, None)
    assert len(tree["tree"]) == 2, "what the damaged event led to stands at the top"
    assert [damage["seq"] for damage in found["damaged"]] == [result["seq"]]
