"""What one request leads to carries its correlation id, everywhere; what it did not lead to never does."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from ksi_common.bus import Delivered
from ksi_common.events import event
from ksi_daemon.testing import PATIENCE_S, RunningDaemon, Wire, running_daemon

from .conftest import LogFile, WritePlugin

CHAIN = """
    import asyncio
    import logging
    import threading
    from collections.abc import AsyncIterator

    import structlog
    from ksi_daemon.plugin import (
        Bus, Database, EventEnvelope, Message, NotFound, Notification, Request, Stream,
        current_envelope, handler, subscriber,
    )

    log = structlog.get_logger()
    plain = logging.getLogger("chain")
    together = asyncio.Barrier(8)
    together_in_threads = threading.Barrier(8, timeout=30)

    class Seen(Message):
        correlation_id: str
        causation_id: str | None
        event_id: str

    class Outer(Request[Seen], event="chain:outer"):
        '''Ask chain:inner.'''

    class Inner(Request[Seen], event="chain:inner"):
        '''Tell chain:happened.'''

    class Look(Request[Seen], event="chain:look", safe=True):
        '''Show what there is to see of the request.'''

    class LookInThread(Request[Seen], event="chain:look_in_thread", safe=True):
        '''Show it in a plain function.'''

    class LookThrough(Stream[Seen], event="chain:look_through", safe=True):
        '''Show it by way of chain:look, three times.'''

    class Happened(Notification, event="chain:happened"):
        '''The first link.'''

    class Followed(Notification, event="chain:followed"):
        '''A subscriber heard of it.'''

    class Passed(Notification, event="chain:passed", ephemeral=True):
        '''The same, not stored.'''

    class Log(Request[Seen], event="chain:log", safe=True):
        '''Log lines.'''
        at_once: bool = False

    class LogInThread(Request[Seen], event="chain:log_in_thread", safe=True):
        '''Log lines in a plain function.'''
        at_once: bool = False

    class Refuse(Request[Seen], event="chain:refuse", safe=True):
        '''Refuse.'''

    def seen() -> Seen:
        envelope = current_envelope()
        return Seen(
            correlation_id=envelope.correlation_id,
            causation_id=envelope.causation_id,
            event_id=envelope.event_id,
        )

    @handler
    async def outer(request: Outer, bus: Bus) -> Seen:
        return await bus.call(Inner())

    @handler
    async def inner(request: Inner, database: Database) -> Seen:
        await database.write(lambda tx: tx.tell(Happened()))
        return seen()

    @subscriber
    async def follow(happened: Happened, bus: Bus) -> None:
        log.info("chain.heard")
        await bus.notify(Passed())
        await bus.notify(Followed())

    @handler
    async def look(request: Look) -> Seen:
        return seen()

    @handler
    def look_in_thread(request: LookInThread) -> Seen:
        return seen()

    @handler
    async def look_through(request: LookThrough, bus: Bus) -> AsyncIterator[Seen]:
        for _ in range(3):
            yield await bus.call(Look())

    def log_lines() -> Seen:
        log.info("chain.said", by="structlog")
        plain.warning("chain.said")
        return seen()

    @handler
    async def log_(request: Log) -> Seen:
        if request.at_once:
            await together.wait()
        return log_lines()

    @handler
    def log_in_thread(request: LogInThread) -> Seen:
        if request.at_once:
            together_in_threads.wait()
        return log_lines()

    @handler
    async def refuse(request: Refuse) -> Seen:
        raise NotFound("nothing here")
"""


@pytest.fixture
async def chain(write_plugin: WritePlugin) -> AsyncIterator[RunningDaemon]:
    async with running_daemon(plugins=[write_plugin(CHAIN, "chain")]) as running:
        yield running


async def first(ksi: RunningDaemon, pattern: str) -> Delivered:
    """Wait for the first event that matches, ever."""
    told = ksi.bus.subscribe(pattern, start="beginning")
    # The bus promises an iterator; it gives a generator, which is closed here rather than by the collector.
    async with asyncio.timeout(PATIENCE_S), aclosing(cast("AsyncGenerator[Delivered, None]", told)) as events:
        return await anext(events)


async def logged(ksi: RunningDaemon, correlation_id: str) -> dict[str, event.Event]:
    """Read what the log has under a correlation id, by name."""
    found = await ksi.bus.call(event.Query(correlation_id=correlation_id, reverse=False))
    return {stored.event: stored for stored in found.events}


# Ids.


async def test_uncorrelated_requests_never_share_a_correlation_id(chain: RunningDaemon) -> None:
    ids: list[str] = []
    for _ in range(4):
        async with chain.connect() as wire:
            for _ in range(32):
                wire.send({"event": "chain:look"})
            ids += [(await wire.receive())["correlation_id"] for _ in range(32)]
    assert len(set(ids)) == 128


async def test_requests_with_the_same_id_one_after_the_other_share_none(chain: RunningDaemon) -> None:
    async with chain.connect() as wire:
        ids = [(await wire.call("chain:look", id="same"))["correlation_id"] for _ in range(10)]
    assert len(set(ids)) == 10


async def test_what_uncorrelated_requests_told_shares_none(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for n in range(64):
            wire.send({"event": "state:set", "data": {"key": f"k{n}", "value": n}})
        replied = {(await wire.receive())["correlation_id"] for _ in range(64)}
    told = ksi.events("state:changed")
    assert len(told) == 64
    assert {stored.correlation_id for stored in told} == replied


async def test_calls_from_nowhere_share_none(chain: RunningDaemon) -> None:
    for n in range(3):
        await chain.bus.call(event.Publish(event="demo:told", data={"n": n}))
    assert len({stored.correlation_id for stored in chain.events("demo:told")}) == 3


async def test_an_uncorrelated_request_is_its_own_correlation(chain: RunningDaemon) -> None:
    data = await chain.call_raw("chain:look")
    assert data["correlation_id"] == data["event_id"]
    assert data["causation_id"] is None


@pytest.mark.parametrize("asked", ["chain:look", "chain:look_in_thread"])
async def test_the_ids_sent_are_those_that_the_handler_sees(chain: RunningDaemon, asked: str) -> None:
    async with chain.connect() as wire:
        answer = await wire.call(asked, correlation_id="task-1", causation_id="turn-9")
    assert answer["correlation_id"] == "task-1"
    assert answer["data"]["correlation_id"] == "task-1"
    assert answer["data"]["causation_id"] == "turn-9"


async def test_an_error_carries_the_correlation_id(chain: RunningDaemon) -> None:
    async with chain.connect() as wire:
        answer = await wire.call("chain:refuse", correlation_id="task-1")
    assert (answer["type"], answer["correlation_id"]) == ("error", "task-1")


# What a request leads to.


async def test_what_a_request_told_carries_its_correlation_and_causation(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        await wire.call("state:set", {"key": "a", "value": 1}, correlation_id="task-1", causation_id="turn-9")
    rows = await logged(ksi, "task-1")
    asked, told = rows["state:set"], rows["state:changed"]
    assert (asked.kind, asked.causation_id) == ("request", "turn-9")
    assert (told.kind, told.causation_id) == ("notification", asked.event_id)


async def test_calls_in_the_process_and_subscribers_pass_it_on(chain: RunningDaemon) -> None:
    async with chain.connect() as wire:
        reply = await wire.call("chain:outer", correlation_id="task-1")
    await first(chain, "chain:followed")
    rows = await logged(chain, "task-1")
    assert set(rows) == {"chain:outer", "chain:inner", "chain:happened", "chain:followed"}
    assert reply["data"]["event_id"] == rows["chain:inner"].event_id
    assert rows["chain:outer"].causation_id is None
    assert rows["chain:inner"].causation_id == rows["chain:outer"].event_id
    assert rows["chain:happened"].causation_id == rows["chain:inner"].event_id
    assert rows["chain:followed"].causation_id == rows["chain:happened"].event_id
    assert {row.actor for row in rows.values()} == {"owner"}


async def test_what_is_ephemeral_carries_it_too(chain: RunningDaemon) -> None:
    async with chain.connect() as wire:
        await wire.call("chain:outer", correlation_id="task-1")
    await first(chain, "chain:followed")
    (happened,) = chain.events("chain:happened")
    (passed,) = chain.events("chain:passed")
    assert (passed.correlation_id, passed.causation_id) == ("task-1", happened.event_id)


async def test_the_handlers_that_a_stream_asks_see_it(chain: RunningDaemon) -> None:
    async with chain.connect() as wire:
        wire.send({"event": "chain:look_through", "id": "s", "correlation_id": "task-1"})
        items = [(await wire.receive())["data"] for _ in range(3)]
        assert (await wire.receive())["type"] == "end"
    assert {item["correlation_id"] for item in items} == {"task-1"}
    assert len({item["causation_id"] for item in items}) == 1
    assert len({item["event_id"] for item in items}) == 3


async def test_a_subscriber_on_the_socket_gets_the_ids(ksi: RunningDaemon) -> None:
    async with ksi.connect() as follower, ksi.connect() as wire:
        follower.send({"event": "event:subscribe", "data": {"patterns": ["demo:*"]}, "id": "s"})
        assert (await follower.receive())["type"] == "caught_up"
        await wire.call("event:publish", {"event": "demo:told"}, correlation_id="task-1", causation_id="t-9")
        item = (await follower.receive())["data"]
    assert (item["correlation_id"], item["causation_id"]) == ("task-1", "t-9")


# The log file.


async def eight(wire: Wire, asked: str) -> set[str]:
    """Have eight requests at work at the same time; give their correlation ids."""
    for n in range(8):
        wire.send({"event": asked, "data": {"at_once": True}, "correlation_id": f"task-{n}"})
    return {(await wire.receive())["correlation_id"] for _ in range(8)}


@pytest.mark.parametrize("asked", ["chain:log", "chain:log_in_thread"])
async def test_a_line_logged_in_a_handler_carries_its_correlation_id(
    write_plugin: WritePlugin, log_file: LogFile, asked: str
) -> None:
    """By structlog and by logging, in a coroutine and in a thread, with others at work beside it."""
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(CHAIN, "chain")]) as ksi, ksi.connect() as wire:
            ids = await eight(wire, asked)
    lines = log_file.lines("chain.said")
    assert len(ids) == 8
    by_structlog = [line["correlation_id"] for line in lines if line.get("by") == "structlog"]
    by_logging = [line["correlation_id"] for line in lines if "by" not in line]
    assert sorted(by_structlog) == sorted(by_logging) == sorted(ids)
    assert {line["request"] for line in lines} == {asked}


async def test_a_line_logged_in_a_subscriber_carries_it(write_plugin: WritePlugin, log_file: LogFile) -> None:
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(CHAIN, "chain")]) as ksi, ksi.connect() as wire:
            await wire.call("chain:outer", correlation_id="task-1")
            await first(ksi, "chain:followed")
    (line,) = log_file.lines("chain.heard")
    assert (line["correlation_id"], line["request"]) == ("task-1", "chain:happened")


async def requests_logged(log_file: LogFile, write_plugin: WritePlugin, **log: Any) -> list[dict[str, Any]]:
    """Send four requests; give the lines that say what was handled."""
    plugins = [write_plugin(CHAIN, "chain")]
    with log_file.written():
        async with running_daemon(plugins=plugins, settings={"log": log}) as ksi, ksi.connect() as wire:
            await wire.call("chain:look", correlation_id="a")
            await wire.call("chain:refuse", correlation_id="b")
            await wire.call("no:such", correlation_id="c")
            await wire.call("chain:outer", correlation_id="d")
    return [line for line in log_file.lines("event.handled") if line["correlation_id"] in {*"abcd"}]


async def test_log_requests_gives_a_line_for_each_request(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    lines = await requests_logged(log_file, write_plugin, requests=True)
    assert [(line["correlation_id"], line["handled"], line["outcome"]) for line in lines] == [
        ("a", "chain:look", "OK"),
        ("b", "chain:refuse", "NOT_FOUND"),
        ("c", "no:such", "NOT_FOUND"),
        ("d", "chain:inner", "OK"),
        ("d", "chain:outer", "OK"),
    ]
    assert all(line["took_ms"] >= 0 for line in lines)


async def test_requests_leave_no_line_unasked(write_plugin: WritePlugin, log_file: LogFile) -> None:
    assert await requests_logged(log_file, write_plugin) == []
