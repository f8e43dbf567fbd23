"""AsyncClient against a fake that cuts, delays, repeats and stops in mid-frame."""

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_client import AsyncClient
from ksi_client.async_link import AsyncLink
from ksi_client.exchanges import MAX_BUFFERED_ITEMS
from ksi_common.bus import Delivered
from ksi_common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from ksi_common.events import event, state
from ksi_common.frames import Mark
from ksi_common.messages import Message, Notification, Request
from tests.unit.test_client_fake import FACTS, FakeDaemon, socket_folder


class Told(Notification, event="demo:told"):
    n: int


class Blinked(Notification, event="demo:blinked", ephemeral=True):
    n: int


class Slept(Message):
    pass


class Sleep(Request[Slept], event="demo:sleep"):
    pass


@pytest.fixture
async def daemon() -> AsyncIterator[FakeDaemon]:
    with socket_folder() as folder:
        async with FakeDaemon(folder / "d.sock") as daemon:
            yield daemon


@pytest.fixture
async def client(daemon: FakeDaemon) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(daemon.path, connect_timeout_s=20, timeout_s=30) as client:
        yield client


async def test_a_call_gives_the_reply_as_its_class(client: AsyncClient) -> None:
    await client.call(state.Set(key="color", value="green"))
    found = await client.call(state.Get(key="color"))
    assert found == state.Found(value="green", found=True, namespace="global", key="color")


async def test_a_call_sends_only_what_was_given(client: AsyncClient, daemon: FakeDaemon) -> None:
    await client.call(state.Get(key="a"))
    assert daemon.received[0].data == {"key": "a"}


async def test_call_raw_gives_the_data_of_the_reply(client: AsyncClient) -> None:
    assert await client.call_raw("system:health") == {"status": "healthy"}


async def test_an_error_is_raised_as_its_class_with_the_correlation_id(client: AsyncClient) -> None:
    with pytest.raises(NotFound) as caught:
        await client.call_raw("demo:absent")
    assert caught.value.details["reason"] == "unknown_event"
    assert caught.value.__notes__ == ["correlation id c1"]


async def test_a_thousand_calls_at_once_are_all_answered(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.handlers["demo:echo"] = dict
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(client.call_raw("demo:echo", {"n": n})) for n in range(1000)]
    assert [call.result() for call in calls] == [{"n": n} for n in range(1000)]
    assert [call.data["n"] for call in daemon.received] == list(range(1000))
    assert client.statistics().in_flight == 0


async def test_no_more_than_128_calls_are_in_flight(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.silent.add("demo:sleep")
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(client.call(Sleep())) for _ in range(150)]
        await daemon.wait_until(lambda: len(daemon.received) == 128)
        assert client.statistics().held_back == 22
        for call in calls:
            call.cancel()
    assert len(daemon.received) == 128


async def test_who_waits_to_write_goes_on_before_those_who_come_later() -> None:
    link, order = AsyncLink(Path("unused"), connect_timeout_s=0.0), []

    async def write(number: int) -> None:
        await link.wait_writable()
        order.append(number)

    async with asyncio.TaskGroup() as tasks:
        link.pause_writing()
        tasks.create_task(write(1))
        tasks.create_task(write(2))
        await asyncio.sleep(0)
        tasks.create_task(write(3))  # begins in the turn in which the others are woken
        link.resume_writing()
    assert order == [1, 2, 3]


async def test_cancelling_a_call_cancels_it_at_the_daemon(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.silent.add("demo:sleep")
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(client.call(Sleep()))
        await daemon.wait_until(lambda: len(daemon.received) == 1)
        call.cancel()
        await daemon.wait_until(lambda: daemon.cancelled == [daemon.received[0].id])
    assert call.cancelled()


async def test_the_time_given_is_sent_and_kept_here_too(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.silent.add("demo:sleep")
    with pytest.raises(DeadlineExceeded, match=r"no answer to 'demo:sleep' within 0\.05 s"):
        await client.call(Sleep(), timeout_s=0.05)
    assert daemon.received[0].timeout_s == 0.05
    await daemon.wait_until(lambda: len(daemon.cancelled) == 1)


async def test_what_cannot_cross_the_wire_is_refused_before_it_is_sent(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgument, match="has a number nan"):
        await client.call_raw("state:set", {"key": "a", "value": float("nan")})
    with pytest.raises(InvalidArgument) as caught:
        await client.call_raw("state:set", {"key": "a", "value": "x" * 2_000_000})
    assert caught.value.details["reason"] == "too_large"
    assert (await client.call_raw("system:health"))["status"] == "healthy"


async def test_notify_publishes_with_an_id_of_its_own(client: AsyncClient, daemon: FakeDaemon) -> None:
    await client.notify(Told(n=1))
    sent = daemon.received[0]
    assert (sent.event, sent.data["event"], sent.data["data"]) == ("event:publish", "demo:told", {"n": 1})
    assert sent.data["event_id"]


async def test_an_ephemeral_notification_says_so(client: AsyncClient, daemon: FakeDaemon) -> None:
    await client.notify(Blinked(n=1))
    assert daemon.received[0].data == {"event": "demo:blinked", "data": {"n": 1}, "ephemeral": True}


async def test_a_notification_is_stored_once_though_the_connection_is_lost(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    daemon.silent.add("event:publish")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.notify(Told(n=1)))
        await daemon.wait_until(lambda: len(daemon.received) == 1)
        daemon.silent.clear()
        daemon.cut()
    first, second = daemon.received
    assert first.data == second.data
    assert len(daemon.log) == 1


async def test_a_safe_call_is_asked_again_after_a_lost_connection(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    daemon.silent.add("state:get")
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(client.call(state.Get(key="a")))
        await daemon.wait_until(lambda: len(daemon.received) == 1)
        daemon.silent.clear()
        await daemon.stop()
        await daemon.start()
    assert not call.result().found
    assert daemon.events_received() == ["state:get", "state:get"]
    assert client.statistics().connections == 2


async def test_a_call_that_is_not_safe_is_asked_again_under_its_key(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    daemon.silent.add("state:set")
    async with asyncio.TaskGroup() as tasks:
        for value in (1, 2):
            tasks.create_task(client.call(state.Set(key="a", value=value)))
        await daemon.wait_until(lambda: len(daemon.received) == 2)
        daemon.silent.clear()
        daemon.cut()
    assert [call.data["value"] for call in daemon.received] == [1, 2, 1, 2]
    first, second, *again = [call.idempotency_key for call in daemon.received]
    assert None not in {first, second}
    assert first != second
    assert again == [first, second]


async def test_a_safe_call_has_no_key(client: AsyncClient, daemon: FakeDaemon) -> None:
    await client.call(state.Get(key="a"))
    await client.call_raw("system:health", safe=True)
    assert [call.idempotency_key for call in daemon.received] == [None, None]


async def test_a_key_given_is_the_key_sent(client: AsyncClient, daemon: FakeDaemon) -> None:
    await client.call(state.Set(key="a", value=1), key="mine")
    await client.call_raw("state:set", {"key": "a", "value": 1}, key="mine")
    assert [call.idempotency_key for call in daemon.received] == ["mine", "mine"]


@pytest.mark.parametrize(
    ("request_", "retryable"),
    [(state.Set(key="a", value=1), True), (Sleep(), False)],
    ids=["idempotent", "other"],
)
async def test_a_call_that_cannot_be_asked_again_says_that_it_may_have_been_done(
    daemon: FakeDaemon, request_: Request[Message], retryable: bool
) -> None:
    daemon.silent |= {"state:set", "demo:sleep"}
    async with AsyncClient(daemon.path, connect_timeout_s=0) as client, asyncio.TaskGroup() as tasks:
        tasks.create_task(stop_when_asked(daemon))
        with pytest.raises(Unavailable, match="may or may not have been done") as caught:
            await client.call(request_, key="mine")
    assert caught.value.details == {"reason": "connection_lost", "idempotency_key": "mine"}
    assert caught.value.retryable is retryable
    await daemon.start()


async def test_an_ephemeral_event_is_not_told_again(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.silent.add("event:publish")
    async with asyncio.TaskGroup() as tasks:
        cut = tasks.create_task(daemon.wait_until(lambda: len(daemon.received) == 1))
        cut.add_done_callback(lambda _: daemon.cut())
        with pytest.raises(Unavailable) as caught:
            await client.call(event.Publish(event="demo:blinked", ephemeral=True))
    assert caught.value.details == {"reason": "connection_lost"}
    assert len(daemon.received) == 1


async def test_a_call_made_while_the_daemon_restarts_waits_for_it(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    await lose_connection(client, daemon)
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(client.call(state.Set(key="a", value=1)))
        await asyncio.sleep(0)
        await daemon.start()
    assert call.result().status == "set"


async def lose_connection(client: AsyncClient, daemon: FakeDaemon) -> None:
    """Stop the daemon, and return when the client has noticed."""
    daemon.silent.add("event:publish")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stop_when_asked(daemon))
        with pytest.raises(Unavailable):
            await client.notify(Blinked(n=1))


async def stop_when_asked(daemon: FakeDaemon) -> None:
    await daemon.wait_until(lambda: bool(daemon.received))
    await daemon.stop()


async def test_without_a_daemon_calls_fail_and_later_ones_try_again(daemon: FakeDaemon) -> None:
    async with AsyncClient(daemon.path, connect_timeout_s=0) as client:
        await lose_connection(client, daemon)
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await client.call(state.Get(key="a"))
            assert caught.value.details["reason"] == "daemon_not_running"
        await daemon.start()
        assert not (await client.call(state.Get(key="a"))).found


async def test_opening_waits_for_a_daemon_that_is_about_to_listen() -> None:
    with socket_folder() as folder:
        daemon = FakeDaemon(folder / "d.sock")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(daemon.start())
            async with AsyncClient(daemon.path) as client:
                assert await client.call_raw("system:health")
        await daemon.stop()


async def test_opening_without_a_daemon_says_how_to_start_it() -> None:
    with socket_folder() as folder, pytest.raises(Unavailable) as caught:
        async with AsyncClient(folder / "none.sock", connect_timeout_s=0):
            pass
    assert caught.value.hint == "start it: python3 daemon_control.py start"


async def test_a_client_that_is_not_open_refuses_calls(daemon: FakeDaemon) -> None:
    client = AsyncClient(daemon.path)
    with pytest.raises(FailedPrecondition, match="not open"):
        await client.call_raw("system:health")


async def test_a_client_that_was_never_open_refuses_streams_and_says_no_more(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made of the refused stream complained, on stderr, when it was let go."""
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with pytest.raises(FailedPrecondition, match="not open"):
        AsyncClient(daemon.path).subscribe("demo:*")
    gc.collect()
    assert said == []


async def test_a_client_may_be_opened_again(daemon: FakeDaemon) -> None:
    client = AsyncClient(daemon.path)
    for _ in range(2):
        async with client:
            assert await client.call_raw("system:health")


async def test_a_client_that_was_closed_refuses_calls(daemon: FakeDaemon) -> None:
    """A blocking one would connect again, by itself; this one needs a task that keeps it connected."""
    async with AsyncClient(daemon.path) as client:
        await client.call_raw("system:health")
    with pytest.raises(FailedPrecondition, match="not open") as refused:
        await client.call_raw("system:health")
    assert refused.value.details == {"reason": "client_closed"}


async def test_closing_fails_what_is_under_way(daemon: FakeDaemon) -> None:
    daemon.silent.add("demo:sleep")
    async with asyncio.TaskGroup() as tasks, AsyncClient(daemon.path) as client:
        call = tasks.create_task(_error_of(client))
        await daemon.wait_until(lambda: len(daemon.received) == 1)
    assert call.result() == "client_closed"


async def _error_of(client: AsyncClient) -> str:
    with pytest.raises(Unavailable) as caught:
        await client.call(Sleep())
    return str(caught.value.details["reason"])


async def test_an_error_in_the_callers_block_is_not_wrapped(daemon: FakeDaemon) -> None:
    with pytest.raises(KeyError):
        async with AsyncClient(daemon.path):
            raise KeyError


async def test_what_is_not_the_protocol_fails_what_is_under_way(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    daemon.handlers["demo:sleep"] = lambda data: daemon.say(b"hello\n")
    with pytest.raises(FailedPrecondition) as caught:
        await client.call(Sleep())
    assert caught.value.details["reason"] == "protocol_mismatch"
    assert (await client.call_raw("system:health"))["status"] == "healthy"


async def test_a_reply_of_another_shape_is_a_mismatch_of_versions(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    daemon.handlers["state:get"] = lambda data: {"surprise": 1}
    with pytest.raises(FailedPrecondition, match="no Found"):
        await client.call(state.Get(key="a"))


async def test_a_daemon_that_refuses_the_connection_for_good_is_believed(daemon: FakeDaemon) -> None:
    refusal = b'{"id":null,"type":"error","error":{"code":"PERMISSION_DENIED","message":"not you"}}\n'
    daemon.handlers["state:get"] = lambda data: daemon.say(refusal, last=True)
    async with AsyncClient(daemon.path) as client:
        with pytest.raises(PermissionDenied, match="not you"):
            await client.call(state.Get(key="a"))


async def test_a_subscription_sees_what_its_own_client_tells_next(client: AsyncClient) -> None:
    events = client.subscribe("demo:*")
    await client.notify(Told(n=1))
    told = await anext(events)
    assert (told.event, told.data, told.cursor) == ("demo:told", {"n": 1}, "fake-1")
    assert events.cursor == "fake-1"


async def test_a_subscription_goes_on_after_a_restart_without_gap_or_duplicate(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    seen = []
    async with asyncio.timeout(30), client.subscribe("demo:*", start="beginning") as events:
        for round_ in range(20):
            daemon.publish("demo:told", {"n": 2 * round_})
            daemon.publish("demo:told", {"n": 2 * round_ + 1})
            seen.append((await anext(events)).data["n"])
            if round_ % 3 == 0:
                await daemon.stop()
                await daemon.start()
        while len(seen) < 40:
            seen.append((await anext(events)).data["n"])
    assert seen == list(range(40))


async def test_a_subscription_goes_on_after_a_connection_cut_in_the_middle_of_an_item(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    for n in range(10):
        daemon.publish("demo:told", {"n": n})
    daemon.cut_within_item = 4
    events = client.subscribe("demo:*", start="beginning")
    async with asyncio.timeout(30):
        assert [(await anext(events)).data["n"] for _ in range(10)] == list(range(10))
    starts = [call.data["start"] for call in daemon.received]
    assert starts == ["beginning", {"cursor": "fake-4"}]


async def test_a_heartbeat_moves_the_place_to_resume_from(client: AsyncClient, daemon: FakeDaemon) -> None:
    marks = client.subscribe("demo:*", marks=True)
    assert isinstance(await anext(marks), Mark)
    daemon.publish("other:told", {})
    for connection in daemon.connections:
        connection.heartbeat()
        connection.heartbeat()
    beat = await anext(marks)
    assert isinstance(beat, Mark)
    assert (beat.kind, beat.cursor) == ("heartbeat", "fake-1")
    daemon.cut()
    await daemon.wait_until(lambda: len(daemon.received) == 2)
    assert daemon.received[1].data["start"] == {"cursor": "fake-1"}


async def test_a_gap_is_given_as_a_mark_or_logged(
    client: AsyncClient, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    marked, plain = client.subscribe("demo:*", marks=True), client.subscribe("demo:*")
    await daemon.wait_until(lambda: len(daemon.received) == 2)
    for connection in daemon.connections:
        for ident in (1, 2):
            connection.mark(ident, "gap", reason="other_log")
    daemon.publish("demo:told", {})
    kinds = [entry.kind for entry in [await anext(marked), await anext(marked)] if isinstance(entry, Mark)]
    assert kinds == ["caught_up", "gap"]
    with caplog.at_level(logging.WARNING, "ksi_client"):
        assert isinstance(await anext(plain), Delivered)
    assert "subscription has a gap: {'reason': 'other_log'}" in caplog.text


async def test_a_subscription_that_is_not_read_is_paused_and_resumed(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    total = MAX_BUFFERED_ITEMS * 2 + 500
    events = client.subscribe("demo:*", start="beginning")
    for n in range(total):
        daemon.publish("demo:told", {"n": n})
    await daemon.wait_until(lambda: len(daemon.cancelled) == 1)
    assert client.statistics().paused == 1
    assert (await client.call_raw("system:health"))["status"] == "healthy"
    async with asyncio.timeout(40):
        assert [(await anext(events)).data["n"] for _ in range(total)] == list(range(total))
    assert client.statistics().paused == 0


async def test_breaking_out_of_a_subscription_stops_it(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.publish("demo:told", {})
    async for _ in client.subscribe("demo:*", start="beginning"):
        break
    gc.collect()
    await daemon.wait_until(lambda: daemon.cancelled == [1])


async def test_cancelling_a_wait_for_an_event_loses_none(client: AsyncClient, daemon: FakeDaemon) -> None:
    events = client.subscribe("demo:*")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(anext(events))
        await daemon.wait_until(lambda: len(daemon.received) == 1)
        waiting.cancel()
    daemon.publish("demo:told", {"n": 1})
    assert (await anext(events)).data == {"n": 1}


async def test_a_stream_ends_when_the_daemon_ends_it(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.publish("demo:told", {"n": 1})
    items = client.stream(event.Subscribe(patterns=["demo:*"], start="beginning"))
    assert (await anext(items)).data == {"n": 1}
    daemon.end_streams()
    assert [item async for item in items] == []


async def test_a_stream_fails_when_the_connection_is_lost(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.publish("demo:told", {"n": 1})
    items = client.stream_raw("event:subscribe", {"patterns": ["demo:*"], "start": "beginning"})
    assert await anext(items) == {"event": "demo:told", "data": {"n": 1}, "event_id": "e1", **FACTS}
    daemon.cut()
    with pytest.raises(Unavailable, match="connection lost"):
        await anext(items)


async def test_a_stream_has_the_time_given(client: AsyncClient) -> None:
    items = client.stream_raw("event:subscribe", {"patterns": ["demo:*"]}, timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        await anext(items)


async def test_a_reply_is_the_only_item_of_a_raw_stream(client: AsyncClient) -> None:
    assert [item async for item in client.stream_raw("system:health")] == [{"status": "healthy"}]


async def test_a_stream_that_is_called_says_that_it_is_one(client: AsyncClient, daemon: FakeDaemon) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await client.call_raw("event:subscribe", {"patterns": ["demo:*"]})
    assert caught.value.details["reason"] == "is_stream"
    await daemon.wait_until(lambda: daemon.cancelled == [1])
