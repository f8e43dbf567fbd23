"""Client, the blocking twin, against the fake in a thread of its own."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ksi_client import Client, RawClient, call_raw
from ksi_common.bus import Delivered
from ksi_common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from ksi_common.events import event, state
from ksi_common.frames import Item, Mark
from ksi_common.messages import Notification
from tests.unit.test_client_fake import FakeDaemon, fake_in_thread, socket_folder

Run = Callable[[Callable[[], Any]], Any]


class Told(Notification, event="demo:told"):
    n: int


@pytest.fixture
def fake() -> Iterator[tuple[FakeDaemon, Run]]:
    with fake_in_thread() as fake:
        yield fake


@pytest.fixture
def daemon(fake: tuple[FakeDaemon, Run]) -> FakeDaemon:
    return fake[0]


@pytest.fixture
def run(fake: tuple[FakeDaemon, Run]) -> Run:
    return fake[1]


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.path, connect_timeout_s=20, timeout_s=30) as client:
        yield client


async def restart(daemon: FakeDaemon) -> None:
    await daemon.stop()
    await daemon.start()


def test_a_call_gives_the_reply_as_its_class(client: Client) -> None:
    client.call(state.Set(key="color", value="green"))
    found = client.call(state.Get(key="color"))
    assert found == state.Found(value="green", found=True, namespace="global", key="color")


def test_a_client_connects_when_it_is_first_used(daemon: FakeDaemon) -> None:
    client = RawClient(daemon.path)
    assert client.call_raw("system:health") == {"status": "healthy"}
    client.close()
    assert client.call_raw("system:health") == {"status": "healthy"}
    assert client.statistics().connections == 2
    client.close()


def test_call_raw_asks_on_a_connection_of_its_own(daemon: FakeDaemon) -> None:
    assert call_raw("system:health", socket=daemon.path) == {"status": "healthy"}


def test_call_raw_fails_at_once_without_a_daemon() -> None:
    with socket_folder() as folder, pytest.raises(Unavailable) as caught:
        call_raw("system:health", socket=folder / "none.sock")
    assert caught.value.details["reason"] == "daemon_not_running"


def test_an_error_is_raised_as_its_class(client: Client) -> None:
    with pytest.raises(NotFound):
        client.call_raw("demo:absent")


def test_what_cannot_cross_the_wire_is_refused_here(client: Client) -> None:
    with pytest.raises(InvalidArgument):
        client.call_raw("state:set", {"value": 2**60})


def test_the_time_given_is_kept_here_too(client: Client, daemon: FakeDaemon, run: Run) -> None:
    daemon.silent.add("demo:sleep")
    with pytest.raises(DeadlineExceeded):
        client.call_raw("demo:sleep", timeout_s=0.05)
    run(lambda: daemon.wait_until(lambda: daemon.cancelled == [1]))


def test_a_large_request_is_written_in_pieces(client: Client) -> None:
    value = "x" * 1_000_000
    client.call(state.Set(key="a", value=value))
    assert client.call(state.Get(key="a")).value == value


def test_a_safe_call_is_asked_again_after_a_lost_connection(client: Client, daemon: FakeDaemon) -> None:
    asked: list[int] = []

    def get(data: object) -> dict[str, Any]:
        asked.append(1)
        if len(asked) == 1:
            daemon.cut()
        return {"value": 1, "found": True, "namespace": "global", "key": "a"}

    daemon.handlers["state:get"] = get
    assert client.call(state.Get(key="a")).value == 1
    assert len(asked) == 2


def test_a_call_that_is_not_safe_is_asked_again_under_its_key(client: Client, daemon: FakeDaemon) -> None:
    asked: list[int] = []

    def sleep(data: object) -> dict[str, Any]:
        asked.append(1)
        if len(asked) % 2:
            daemon.cut()
        return {"woken": True}

    daemon.handlers["demo:sleep"] = sleep
    assert client.call_raw("demo:sleep") == {"woken": True}
    assert client.call_raw("demo:sleep", key="mine") == {"woken": True}
    first, second, *mine = [call.idempotency_key for call in daemon.received]
    assert first == second
    assert mine == ["mine", "mine"]


def test_a_call_that_cannot_be_asked_again_says_that_it_may_have_been_done(
    daemon: FakeDaemon,
) -> None:
    daemon.handlers["demo:sleep"] = lambda data: daemon.cut()
    with (
        RawClient(daemon.path, connect_timeout_s=0) as client,
        pytest.raises(Unavailable, match="may or may not have been done") as caught,
    ):
        client.call_raw("demo:sleep", {"n": 1}, key="mine")
    assert caught.value.details == {"reason": "connection_lost", "idempotency_key": "mine"}


def test_a_client_finds_the_daemon_that_was_restarted(client: Client, daemon: FakeDaemon, run: Run) -> None:
    client.call_raw("system:health")
    run(lambda: restart(daemon))
    assert client.call_raw("system:health", safe=True) == {"status": "healthy"}


def test_without_a_daemon_a_safe_call_gives_up_in_time(daemon: FakeDaemon, run: Run) -> None:
    with RawClient(daemon.path, connect_timeout_s=0.1) as client:
        client.call_raw("system:health")
        run(daemon.stop)
        with pytest.raises(Unavailable) as caught:
            client.call_raw("system:health", safe=True)
        run(daemon.start)
    assert caught.value.details["reason"] == "daemon_not_running"


def test_what_is_not_the_protocol_is_a_mismatch_of_versions(client: Client, daemon: FakeDaemon) -> None:
    daemon.handlers["demo:sleep"] = lambda data: daemon.say(b"[]\n")
    with pytest.raises(FailedPrecondition) as caught:
        client.call_raw("demo:sleep")
    assert caught.value.details["reason"] == "protocol_mismatch"
    assert client.call_raw("system:health")


def test_a_daemon_that_refuses_the_connection_for_good_is_believed(
    client: Client, daemon: FakeDaemon
) -> None:
    refusal = b'{"id":null,"type":"error","error":{"code":"PERMISSION_DENIED","message":"not you"}}\n'
    daemon.handlers["state:get"] = lambda data: daemon.say(refusal, last=True)
    with pytest.raises(PermissionDenied, match="not you"):
        client.call(state.Get(key="a"))


def test_a_daemon_that_is_too_full_for_a_connection_is_tried_again(
    daemon: FakeDaemon,
) -> None:
    refusal = b'{"id":null,"type":"error","error":{"code":"UNAVAILABLE","message":"full","retryable":true}}\n'
    asked: list[int] = []

    def get(data: object) -> dict[str, Any]:
        asked.append(1)
        if len(asked) < 3:
            daemon.say(refusal, last=True)
        return {"value": 1, "found": True, "namespace": "global", "key": "a"}

    daemon.handlers["state:get"] = get
    with Client(daemon.path, connect_timeout_s=20) as client:
        assert client.call(state.Get(key="a")).value == 1
    assert len(asked) == 3


def test_a_daemon_that_stays_too_full_for_a_connection_is_given_up(daemon: FakeDaemon) -> None:
    refusal = b'{"id":null,"type":"error","error":{"code":"UNAVAILABLE","message":"full","retryable":true}}\n'
    daemon.handlers["state:get"] = lambda data: daemon.say(refusal, last=True)
    with Client(daemon.path, connect_timeout_s=0.1) as client, pytest.raises(Unavailable, match="full"):
        client.call(state.Get(key="a"))


def test_notify_publishes(client: Client, daemon: FakeDaemon) -> None:
    client.notify(Told(n=1))
    assert daemon.log[0]["data"] == {"n": 1}


def test_a_subscription_sees_what_its_own_client_tells_next(client: Client) -> None:
    with client.subscribe("demo:*") as events:
        client.notify(Told(n=1))
        told = next(events)
    assert (told.event, told.data, events.cursor) == ("demo:told", {"n": 1}, "fake-1")


def test_marks_are_given_where_they_are_asked_for(client: Client, daemon: FakeDaemon) -> None:
    client.notify(Told(n=1))
    events = client.subscribe(["demo:*"], start="beginning", marks=True)
    first, second = next(events), next(events)
    assert isinstance(first, Delivered)
    assert isinstance(second, Mark)
    assert second.kind == "caught_up"
    raw = client.subscribe_raw("demo:*", start={"cursor": "fake-0"})
    assert isinstance(next(raw), Item)


def test_a_subscription_goes_on_after_a_restart_without_gap_or_duplicate(
    client: Client, daemon: FakeDaemon, run: Run
) -> None:
    seen = []
    events = client.subscribe("demo:*", start="beginning")
    for n in range(30):
        run(lambda: daemon.publish("demo:told", {"n": n}))  # noqa: B023  (run at once)
        if n % 3 == 0:
            seen.append(next(events).data["n"])
            run(lambda: restart(daemon))
    seen += [next(events).data["n"] for _ in range(20)]
    assert seen == list(range(30))


def test_a_subscription_goes_on_after_a_cut_in_the_middle_of_an_item(
    client: Client, daemon: FakeDaemon, run: Run
) -> None:
    for n in range(10):
        run(lambda: daemon.publish("demo:told", {"n": n}))  # noqa: B023  (run at once)
    daemon.cut_within_item = 4
    events = client.subscribe("demo:*", start="beginning")
    assert [next(events).data["n"] for _ in range(10)] == list(range(10))


def test_closing_a_subscription_stops_it(client: Client, daemon: FakeDaemon, run: Run) -> None:
    for _ in client.stream_raw("system:health"):
        pass
    client.subscribe("demo:*")
    run(lambda: daemon.wait_until(lambda: daemon.cancelled == [2]))


def test_a_stream_gives_items_of_its_class_and_ends(client: Client, daemon: FakeDaemon, run: Run) -> None:
    client.notify(Told(n=1))
    items = client.stream(event.Subscribe(patterns=["demo:*"], start="beginning"))
    assert next(items).data == {"n": 1}
    run(daemon.end_streams)
    assert list(items) == []


def test_a_stream_that_is_not_read_ends_with_an_error_after_what_waits(
    client: Client, daemon: FakeDaemon, run: Run
) -> None:
    items = client.stream_raw("event:subscribe", {"patterns": ["demo:*"], "start": "beginning"})
    client.call_raw("system:health")
    run(lambda: [daemon.publish("demo:told", {"n": n}) for n in range(12_000)])
    client.call_raw("system:health")
    given: list[int] = []
    with pytest.raises(ResourceExhausted, match="not read"):
        given.extend(item["data"]["n"] for item in items)


def test_a_stream_has_the_time_given(client: Client, daemon: FakeDaemon) -> None:
    items = client.stream_raw("event:subscribe", {"patterns": ["demo:*"]}, timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        next(items)


def test_a_second_thread_is_told_to_use_a_client_of_its_own(
    client: Client, daemon: FakeDaemon, run: Run
) -> None:
    daemon.silent.add("event:publish")
    caught: list[BaseException] = []

    def sleep() -> None:
        with pytest.raises(Unavailable) as error:
            client.call_raw("event:publish", {"event": "demo:blinked", "ephemeral": True})
        caught.append(error.value)

    thread = threading.Thread(target=sleep)
    thread.start()
    run(lambda: daemon.wait_until(lambda: daemon.events_received() == ["event:publish"]))
    with pytest.raises(FailedPrecondition, match="another thread"):
        client.call_raw("system:health")
    run(daemon.cut)
    thread.join()
    assert len(caught) == 1


def test_a_client_that_is_closed_wakes_the_thread_that_waits(
    client: Client, daemon: FakeDaemon, run: Run
) -> None:
    daemon.silent.add("event:publish")
    caught: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(Unavailable) as error:
            client.call_raw("event:publish", {"event": "demo:told"}, timeout_s=60)
        caught.append(error.value)

    thread = threading.Thread(target=ask)
    thread.start()
    run(lambda: daemon.wait_until(lambda: daemon.events_received() == ["event:publish"]))
    client.close()
    thread.join(5)
    assert [error.details["reason"] for error in caught if isinstance(error, Unavailable)] == [
        "client_closed"
    ]


def test_a_time_longer_than_the_system_waits_at_once_may_be_given(client: Client) -> None:
    """``--timeout 30d`` ended with a traceback: poll() takes no more than 24 days."""
    assert client.call_raw("system:health", timeout_s=30 * 86_400.0) == {"status": "healthy"}
