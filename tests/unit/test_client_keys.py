"""What a client adds to a request so that it may be sent again."""

import os
from typing import Any

import pytest

from ksi_client.keys import key_source, make_repeatable
from ksi_common.frames import Call


def repeatable(event: str, data: dict[str, Any]) -> tuple[bool, dict[str, Any], str | None]:
    call = Call(event, data)
    may = make_repeatable(call, "k")
    return may, dict(call.data), call.idempotency_key


def test_a_request_gets_the_key() -> None:
    assert repeatable("state:set", {"key": "a"}) == (True, {"key": "a"}, "k")


@pytest.mark.parametrize("given", [{}, {"event_id": None}])
def test_an_event_that_is_told_gets_an_id_in_place_of_a_key(given: dict[str, Any]) -> None:
    told = {"event": "demo:told", "event_id": "k"}
    assert repeatable("event:publish", {"event": "demo:told", **given}) == (True, told, None)


def test_an_event_that_has_an_id_keeps_it() -> None:
    told = {"event": "demo:told", "event_id": "mine"}
    assert repeatable("event:publish", told) == (True, told, None)


def test_an_ephemeral_event_cannot_be_told_again() -> None:
    told = {"event": "demo:told", "ephemeral": True}
    assert repeatable("event:publish", told) == (False, told, None)


def test_each_event_appended_gets_an_id_of_its_own() -> None:
    events = [{"event": "demo:a"}, {"event": "demo:b", "event_id": "mine"}, {"event": "demo:c"}]
    may, data, key = repeatable("event:append", {"stream": "demo/1", "events": events})
    assert (may, key) == (True, None)
    assert [event["event_id"] for event in data["events"]] == ["k-0", "mine", "k-2"]
    appends = [{"stream": "demo/1", "events": events}, {"stream": "demo/2", "events": events[:1]}]
    may, data, key = repeatable("event:append_many", {"appends": appends})
    ids = [[event["event_id"] for event in one["events"]] for one in data["appends"]]
    assert (may, key, ids) == (True, None, [["k-0-0", "mine", "k-0-2"], ["k-1-0"]])


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("event:append", {"events": 1}),
        ("event:append", {"events": [1]}),
        ("event:append_many", {"appends": [1]}),
        ("event:append_many", {"appends": [{"events": None}]}),
    ],
)
def test_what_the_daemon_will_refuse_is_sent_as_it_is(event: str, data: dict[str, Any]) -> None:
    assert repeatable(event, data)[:2] == (True, data)


def test_keys_differ_and_sort_as_they_are_made() -> None:
    new_key = key_source()
    keys = [new_key() for _ in range(9)]
    assert sorted(set(keys)) == keys


def test_a_fork_makes_keys_of_its_own_with_a_client_of_its_own() -> None:
    key_source()()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, key_source()().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() != key_source()()
    os.close(reading)
    os.close(writing)
