"""The bus in the process: the same way through the middleware as over the socket."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ksi_common.bus import Delivered
from ksi_common.envelope import EventEnvelope, event_context
from ksi_common.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from ksi_common.events import event, state, system
from ksi_common.messages import Message, Notification, Request, Stream
from ksi_daemon.testing import PATIENCE_S, RunningDaemon, running_daemon

from .conftest import LogFile, WritePlugin

RELAY = """
    import asyncio
    from collections.abc import AsyncIterator

    from ksi_daemon.plugin import Bus, EventEnvelope, Message, NotFound, Notification, Request, Stream
    from ksi_daemon.plugin import handler

    class Count(Message):
        n: int
        deadline: float | None = None
        traceparent: str | None = None

    class Echo(Request[Count], event="relay:echo", safe=True):
        '''Tell the deadline that there is.'''
        n: int = 0

    class Through(Request[Count], event="relay:through", safe=True):
        '''Ask relay:echo.'''
        timeout_s: float | None = None

    class Again(Request[Count], event="relay:again", safe=True):
        '''Ask oneself, with one more.'''
        n: int = 0

    class Fail(Request[Count], event="relay:fail", safe=True):
        '''Fail through three handlers.'''
        n: int = 0
        bug: bool = True

    class Wait(Request[Count], event="relay:wait", safe=True):
        '''Wait for ever.'''

    class Patient(Request[Count], event="relay:patient", safe=True):
        '''Ask relay:wait, with a time of one's own or none.'''
        timeout_s: float | None = None

    class Items(Stream[Count], event="relay:items", safe=True):
        '''Give items.'''
        n: int

    class Total(Request[Count], event="relay:total", safe=True):
        '''Take some items of relay:items.'''
        n: int
        take: int

    class Told(Notification, event="relay:told"):
        n: int

    class Passing(Notification, event="relay:passing", ephemeral=True):
        n: int

    stopped = asyncio.Event()

    @handler
    async def echo(request: Echo, envelope: EventEnvelope) -> Count:
        return Count(n=envelope.hop, deadline=envelope.deadline, traceparent=envelope.traceparent)

    @handler
    async def through(request: Through, bus: Bus) -> Count:
        return await bus.call(Echo(), timeout_s=request.timeout_s)

    @handler
    async def again(request: Again, bus: Bus) -> Count:
        return await bus.call(Again(n=request.n + 1))

    @handler
    async def fail(request: Fail, bus: Bus) -> Count:
        if request.n < 2:
            return await bus.call(Fail(n=request.n + 1, bug=request.bug))
        if request.bug:
            raise ZeroDivisionError("at the bottom")
        raise NotFound("nothing at the bottom", depth=request.n)

    @handler
    async def wait(request: Wait) -> Count:
        await asyncio.Event().wait()
        return Count(n=0)

    @handler
    async def patient(request: Patient, bus: Bus) -> Count:
        return await bus.call(Wait(), timeout_s=request.timeout_s)

    @handler
    async def items(request: Items) -> AsyncIterator[Count]:
        try:
            for n in range(request.n):
                yield Count(n=n)
        finally:
            stopped.set()

    @handler
    async def total(request: Total, bus: Bus) -> Count:
        seen = 0
        stream = bus.stream(Items(n=request.n))
        async for item in stream:
            seen += 1
            if seen == request.take:
                break
        await stream.aclose()
        await stopped.wait()
        return Count(n=seen)
"""


class Greeting(Message):
    text: str


class Greet(Request[Greeting], event="nobody:greet"):
    """Nobody handles this."""


class Follow(Stream[Greeting], event="nobody:follow"):
    """Nobody handles this."""


class Happened(Notification, event="test:happened"):
    """Something happened."""

    n: int


class Passed(Notification, event="test:passed", ephemeral=True):
    """Something passed by."""

    n: int


@pytest.fixture
async def relay(write_plugin: WritePlugin, log_file: LogFile) -> AsyncIterator[RunningDaemon]:
    with log_file.written():
        plugins = [write_plugin(RELAY, "relay")]
        async with running_daemon(plugins=plugins, settings={"strict": False}) as ksi:
            yield ksi


# Calls.


async def test_what_is_asked_by_name_is_part_of_the_trace(relay: RunningDaemon) -> None:
    with event_context(EventEnvelope("demo:cause", {}, "e", "c", traceparent="00-1-2-01")):
        reply = await relay.daemon.bus.ask("relay:echo", {})
    assert (reply["n"], reply["traceparent"]) == (1, "00-1-2-01")


async def test_a_call_gives_the_reply_as_its_class(ksi: RunningDaemon) -> None:
    await ksi.bus.call(state.Set(key="a", value=[1, None]))
    found = await ksi.bus.call(state.Get(key="a"))
    assert found == state.Found(value=[1, None], found=True, namespace="global", key="a")


async def test_a_call_raises_the_error_of_the_handler(ksi: RunningDaemon) -> None:
    with pytest.raises(NotFound) as caught:
        await ksi.bus.call(system.Help(event="no:such"))
    assert caught.value.details["reason"] == "unknown_event"


async def test_a_call_that_nobody_handles_is_not_found(ksi: RunningDaemon) -> None:
    with pytest.raises(NotFound, match="nobody:greet"):
        await ksi.bus.call(Greet())


async def test_many_calls_at_once_get_their_own_replies(ksi: RunningDaemon) -> None:
    async with asyncio.TaskGroup() as tasks:
        for n in range(100):
            tasks.create_task(ksi.bus.call(state.Set(key=f"k{n}", value=n)))
        replies = [tasks.create_task(ksi.bus.call(system.GetInfo())) for _ in range(100)]
    assert len({reply.result().pid for reply in replies}) == 1
    found = [await ksi.bus.call(state.Get(key=f"k{n}")) for n in range(100)]
    assert [reply.value for reply in found] == list(range(100))


async def test_a_call_has_the_deadline_it_is_given(relay: RunningDaemon) -> None:
    loop = asyncio.get_running_loop()
    reply = await relay.call_raw("relay:through", {"timeout_s": 5})
    assert reply["deadline"] <= loop.time() + 5


async def test_the_deadline_of_a_nested_call_only_shrinks(relay: RunningDaemon) -> None:
    loop = asyncio.get_running_loop()
    async with relay.connect() as wire:
        longer = await wire.call("relay:through", {"timeout_s": 1000}, timeout_s=5)
        none = await wire.call("relay:through", timeout_s=5)
    assert longer["data"]["deadline"] <= loop.time() + 5
    assert none["data"]["deadline"] <= loop.time() + 5


async def test_a_nested_call_that_takes_too_long_is_deadline_exceeded(relay: RunningDaemon) -> None:
    async with relay.connect() as wire:
        answer = await wire.call("relay:patient", {"timeout_s": 0.05})
    assert answer["error"]["code"] == "DEADLINE_EXCEEDED"


async def test_the_time_of_the_outermost_call_holds_for_the_innermost(relay: RunningDaemon) -> None:
    async with relay.connect() as wire:
        answer = await wire.call("relay:patient", {"timeout_s": 1000}, timeout_s=0.05)
    assert answer["error"]["code"] == "DEADLINE_EXCEEDED"


async def test_a_call_from_nowhere_is_deadline_exceeded_in_its_time(relay: RunningDaemon) -> None:
    import sys

    module = sys.modules["ksi_file_relay"]
    with pytest.raises(DeadlineExceeded):
        await relay.bus.call(module.Wait(), timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        await relay.bus.call(module.Patient(timeout_s=0.05))


async def test_a_call_from_nowhere_has_the_default_time(write_plugin: WritePlugin) -> None:
    import sys

    settings = {"limits": {"handler_s": 0.05}}
    async with running_daemon(plugins=[write_plugin(RELAY, "relay")], settings=settings) as ksi:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(DeadlineExceeded):
                await ksi.bus.call(sys.modules["ksi_file_relay"].Wait())


async def test_a_chain_of_33_events_is_refused(relay: RunningDaemon) -> None:
    async with relay.connect() as wire:
        error = (await wire.call("relay:again"))["error"]
    assert error["code"] == "FAILED_PRECONDITION"
    assert error["details"] == {"reason": "too_many_hops", "limit": 32}


async def test_a_bug_crosses_calls_and_is_logged_once(write_plugin: WritePlugin, log_file: LogFile) -> None:
    with log_file.written():
        plugins = [write_plugin(RELAY, "relay")]
        async with running_daemon(plugins=plugins, settings={"strict": False}) as ksi, ksi.connect() as wire:
            error = (await wire.call("relay:fail"))["error"]
            details = await ksi.call_raw("plugin:inspect", {"plugin_name": "relay"})
    assert error["code"] == "INTERNAL"
    assert "relay.py:" in error["message"]
    assert details["failures"] == 1
    assert len(log_file.lines("handler.crashed")) == 1


async def test_an_expected_error_crosses_calls_unchanged(relay: RunningDaemon) -> None:
    async with relay.connect() as wire:
        error = (await wire.call("relay:fail", {"bug": False}))["error"]
    assert (error["code"], error["message"], error["details"]) == (
        "NOT_FOUND",
        "nothing at the bottom",
        {"depth": 2},
    )


async def test_a_bug_is_an_internal_error_to_who_asked_in_the_process(relay: RunningDaemon) -> None:
    import sys

    with pytest.raises(InternalError, match="plugin relay failed"):
        await relay.bus.call(sys.modules["ksi_file_relay"].Fail())


# Streams.


async def test_a_stream_gives_every_item_in_order(relay: RunningDaemon) -> None:
    import sys

    request = sys.modules["ksi_file_relay"].Items(n=100)
    assert [item.n async for item in relay.bus.stream(request)] == list(range(100))


@pytest.mark.parametrize("take", [1, 15, 16, 17, 100])
async def test_a_stream_that_is_left_stops_its_handler(relay: RunningDaemon, take: int) -> None:
    reply = await relay.call_raw("relay:total", {"n": 1000, "take": take})
    assert reply["n"] == take


async def test_a_stream_that_was_left_does_not_hold_up_the_end(write_plugin: WritePlugin) -> None:
    import sys

    async with asyncio.timeout(PATIENCE_S):
        async with running_daemon(plugins=[write_plugin(RELAY, "relay")]) as ksi:
            items = ksi.bus.stream(sys.modules["ksi_file_relay"].Items(n=10_000))
            assert (await anext(items)).n == 0


async def test_a_stream_that_nobody_handles_is_not_found(ksi: RunningDaemon) -> None:
    with pytest.raises(NotFound, match="nobody:follow"):
        await anext(ksi.bus.stream(Follow()))


async def test_a_feed_of_connections_is_not_for_the_process(ksi: RunningDaemon) -> None:
    with pytest.raises(Unimplemented, match=r"bus\.subscribe"):
        await anext(ksi.bus.stream(event.Subscribe(patterns=["a:*"])))


# What is told.


async def test_what_is_told_is_stored_before_notify_returns(ksi: RunningDaemon) -> None:
    await ksi.bus.notify(Happened(n=1))
    found = await ksi.bus.call(event.Query(patterns=["test:*"]))
    assert [stored.data for stored in found.events] == [{"n": 1}]
    assert found.events[0].actor == "system"


async def test_what_is_ephemeral_is_told_and_not_stored(ksi: RunningDaemon) -> None:
    await ksi.bus.notify(Passed(n=1))
    assert ksi.emitted("test:passed") == [{"n": 1}]
    assert (await ksi.bus.call(event.Query(patterns=["test:*"]))).count == 0


async def test_an_ephemeral_event_never_overtakes_a_durable_one(ksi: RunningDaemon) -> None:
    for n in range(0, 20, 2):
        await ksi.bus.notify(Happened(n=n))
        await ksi.bus.notify(Passed(n=n + 1))
    assert [data["n"] for data in ksi.emitted("test:*")] == list(range(20))


# Subscriptions.


async def test_a_subscriber_in_the_process_gets_what_was_and_what_is_told(ksi: RunningDaemon) -> None:
    await ksi.bus.notify(Happened(n=0))
    events = ksi.bus.subscribe("test:*", start="beginning")
    first = await anext(events)
    await ksi.bus.notify(Happened(n=1))
    await ksi.bus.notify(Passed(n=2))
    rest = [await anext(events), await anext(events)]
    assert isinstance(first, Delivered)
    assert [delivered.data for delivered in (first, *rest)] == [{"n": 0}, {"n": 1}, {"n": 2}]
    await events.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_a_subscriber_resumes_from_a_cursor(ksi: RunningDaemon) -> None:
    for n in range(10):
        await ksi.bus.notify(Happened(n=n))
    events = ksi.bus.subscribe("test:happened", start="beginning")
    seen = [await anext(events) for _ in range(4)]
    await events.aclose()  # type: ignore[attr-defined]  # an async generator
    resumed = ksi.bus.subscribe("test:happened", start={"cursor": seen[-1].cursor})
    assert [(await anext(resumed)).data for _ in range(6)] == [{"n": n} for n in range(4, 10)]
    await resumed.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_a_subscription_begins_when_it_is_made(ksi: RunningDaemon) -> None:
    events = ksi.bus.subscribe("test:*")
    await ksi.bus.notify(Happened(n=1))
    async with asyncio.timeout(PATIENCE_S):
        assert (await anext(events)).data == {"n": 1}


@pytest.mark.parametrize("start", ["later", {"cursor": "x"}, {"time": "tuesday"}, {"clock": 5}])
async def test_a_start_that_is_none_is_refused(ksi: RunningDaemon, start: object) -> None:
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(InvalidArgument):
            await anext(ksi.bus.subscribe("test:*", start=start))  # type: ignore[arg-type]


async def test_patterns_that_are_none_are_refused(ksi: RunningDaemon) -> None:
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(InvalidArgument):
            await anext(ksi.bus.subscribe("Test.*"))


async def test_a_subscriber_that_is_left_does_not_hold_up_the_end() -> None:
    async with asyncio.timeout(PATIENCE_S), running_daemon() as ksi:
        events = ksi.bus.subscribe("test:*", start="beginning")
        await ksi.bus.notify(Happened(n=1))
        await anext(events)


# Errors of use.


async def test_a_second_unit_of_work_in_one_request_is_a_bug(write_plugin: WritePlugin) -> None:
    source = """
        from ksi_daemon.plugin import Database, Message, Request, handler

        class Done(Message):
            pass

        class Twice(Request[Done], event="twice:write"):
            '''Write twice.'''

        @handler
        async def twice(request: Twice, database: Database) -> Done:
            await database.write(lambda tx: None)
            await database.write(lambda tx: None)
            return Done()
    """
    plugins = [write_plugin(source)]
    async with running_daemon(plugins=plugins, settings={"strict": False}) as ksi, ksi.connect() as wire:
        error = (await wire.call("twice:write"))["error"]
    assert error["code"] == "INTERNAL"


async def test_an_error_that_a_unit_raises_is_its_callers(ksi: RunningDaemon) -> None:
    await ksi.bus.call(event.Publish(event="demo:told", event_id="one"))
    with pytest.raises(AlreadyExists):
        await ksi.bus.call(event.Publish(event="demo:other", event_id="one"))
    with pytest.raises(FailedPrecondition):
        await ksi.bus.call(
            event.Append(stream="s", events=[event.NewEvent(event="demo:told")], expected_version=5)
        )
