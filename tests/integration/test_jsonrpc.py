"""JSON-RPC 2.0 over the socket: the examples of its specification, and what KSI adds to it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ksi_daemon.testing import PATIENCE_S, RunningDaemon, Wire, running_daemon

from .conftest import WritePlugin

MATHS = """
    import asyncio
    from collections.abc import AsyncIterator
    from ksi_daemon.plugin import Field, InvalidArgument, Message, Request, Stream, handler

    class Number(Message):
        value: float

    class Word(Message):
        text: str

    class Subtract(Request[Number], event="maths:subtract", safe=True):
        '''Subtract.'''
        minuend: float
        subtrahend: float

    class Sleep(Request[Number], event="maths:sleep", safe=True):
        '''Never answer.'''

    class Count(Stream[Number], event="maths:count", safe=True):
        '''Count.'''
        to: int

    class Large(Request[Word], event="maths:large", safe=True):
        '''Say much.'''

    class Fall(Request[Number], event="maths:fall", safe=True):
        '''Fall.'''

    @handler
    async def subtract(request: Subtract) -> Number:
        return Number(value=request.minuend - request.subtrahend)

    @handler
    async def sleep(request: Sleep) -> Number:
        await asyncio.Event().wait()

    @handler
    async def count(request: Count) -> AsyncIterator[Number]:
        for value in range(request.to):
            yield Number(value=value)

    @handler
    async def large(request: Large) -> Word:
        return Word(text="x" * 1_000_000)

    @handler
    async def fall(request: Fall) -> Number:
        raise RuntimeError("a bug")
"""

HEALTH = {"event": "system:health", "id": "native"}


@pytest.fixture
async def wire(write_plugin: WritePlugin) -> AsyncIterator[Wire]:
    plugin = write_plugin(MATHS, "maths")
    async with running_daemon(plugins=[plugin], settings={"strict": False}) as ksi, ksi.connect() as wire:
        yield wire


async def receive(wire: Wire) -> Any:
    """Read a line that may be an array."""
    async with asyncio.timeout(PATIENCE_S):
        return json.loads(await wire.reader.readline())


async def exchange(wire: Wire, line: str) -> Any:
    """Send a line and read its answer: None where KSI's own request, sent behind it, is answered first."""
    wire.send(line.encode() + b"\n")
    wire.send({"event": "maths:subtract", "data": {"minuend": 1, "subtrahend": 1}, "id": "behind"})
    answer = await receive(wire)
    if isinstance(answer, dict) and answer.get("id") == "behind":
        return None
    assert (await receive(wire))["id"] == "behind"
    return answer


def call(method: str, ident: Any = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params, "id": ident}


def result(value: Any, ident: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "result": value, "id": ident}


def error(code: int, ident: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": {"code": code}, "id": ident}


def bare(answer: Any) -> Any:
    """Leave out of an answer what the specification leaves to the server: words and data of errors."""
    if isinstance(answer, list):
        return sorted(map(bare, answer), key=lambda each: json.dumps(each["id"]))
    if isinstance(answer, dict) and "jsonrpc" in answer and "error" in answer:
        assert isinstance(answer["error"].get("message", ""), str)
        return {**answer, "error": {"code": answer["error"]["code"]}}
    return answer


NAMED = '{"jsonrpc": "2.0", "method": "maths:subtract", "params": {"%s": 23, "%s": 42}, "id": 3}'

# Section 7 of the specification; by-position calls are refused, and names are those of events.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "by position": (
        '{"jsonrpc": "2.0", "method": "maths:subtract", "params": [42, 23], "id": 1}',
        error(-32602, 1),
    ),
    "by name": (NAMED % ("subtrahend", "minuend"), result({"value": 19.0}, 3)),
    "by name, turned round": (NAMED % ("minuend", "subtrahend"), result({"value": -19.0}, 3)),
    "a notification": ('{"jsonrpc": "2.0", "method": "maths:subtract", "params": [1,2,3,4,5]}', None),
    "another notification": ('{"jsonrpc": "2.0", "method": "foobar"}', None),
    "a method that does not exist": ('{"jsonrpc": "2.0", "method": "foobar", "id": "1"}', error(-32601, "1")),
    "an invalid request": ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}', error(-32600, None)),
    "an empty array": ("[]", error(-32600, None)),
    "a batch": (
        """[
        {"jsonrpc": "2.0", "method": "maths:subtract", "params": {"minuend": 7, "subtrahend": 0}, "id": "1"},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": {"n": 7}},
        {"jsonrpc": "2.0", "method": "maths:subtract", "params": {"minuend": 8, "subtrahend": 2}, "id": "2"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"jsonrpc": "2.0", "method": "maths:subtract", "params": {"minuend": 9, "subtrahend": 0}, "id": "9"}
        ]""".replace("\n", " "),
        [
            result({"value": 7.0}, "1"),
            result({"value": 6.0}, "2"),
            error(-32601, "5"),
            result({"value": 9.0}, "9"),
            error(-32600, None),
        ],
    ),
    "a batch of notifications": (
        '[{"jsonrpc": "2.0", "method": "notify_sum", "params": {"n": 1}}, '
        '{"jsonrpc": "2.0", "method": "notify_hello", "params": {"n": 7}}]',
        None,
    ),
}


@pytest.mark.parametrize(("line", "wanted"), EXAMPLES.values(), ids=EXAMPLES)
async def test_the_examples_of_the_specification(wire: Wire, line: str, wanted: Any) -> None:
    assert bare(await exchange(wire, line)) == bare(wanted)


@pytest.mark.parametrize(
    "line", ['{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', "[1]", "[1,2,3]"]
)
async def test_its_examples_of_no_shape_are_answered_as_ksi_does(wire: Wire, line: str) -> None:
    answer = await exchange(wire, line)
    assert (answer["type"], answer["error"]["code"], answer["id"]) == ("error", "INVALID_ARGUMENT", None)


async def test_a_notification_does_its_work(ksi: RunningDaemon) -> None:
    told = ksi.bus.subscribe("state:changed")
    async with ksi.connect() as wire, asyncio.timeout(PATIENCE_S):
        wire.send({"jsonrpc": "2.0", "method": "state:set", "params": {"key": "a", "value": 1}})
        assert (await anext(aiter(told))).data["key"] == "a"
        assert (await wire.call("system:health"))["id"] == "w1", "nothing was answered to it"


async def test_items_and_marks_are_notifications_and_the_end_is_the_response(wire: Wire) -> None:
    wire.send(call("maths:count", "s", to=3))
    lines = [await receive(wire) for _ in range(4)]
    assert [line.get("method") for line in lines] == ["$/item"] * 3 + [None]
    assert [line["params"] for line in lines[:3]] == [{"id": "s", "data": {"value": n}} for n in (0, 1, 2)]
    assert lines[3] == result(None, "s")


async def test_a_subscription_has_cursors_to_go_on_from(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for n in range(3):
            await wire.call("state:set", {"key": "k", "value": n})
        wire.send(call("event:subscribe", 1, patterns=["state:*"], start="beginning"))
        lines = [await receive(wire) for _ in range(4)]
        assert [line["method"] for line in lines] == ["$/item", "$/item", "$/item", "$/caught_up"]
        cursor = lines[1]["params"]["cursor"]
        wire.send(call("event:subscribe", 2, patterns=["state:*"], start={"cursor": cursor}))
        again = await receive(wire)
        assert again["params"] == {**lines[2]["params"], "id": 2}
        wire.send(call("state:set", None, key="k", value="live"))
        live = [await receive(wire) for _ in range(4)]
    items = [line["params"] for line in live if line.get("method") == "$/item"]
    assert sorted(item["id"] for item in items) == [1, 2]
    assert [item["data"]["data"]["value"] for item in items] == ["live", "live"]


@pytest.mark.parametrize("ident", [7, "7", 7.5])
async def test_a_cancel_stops_the_call_that_it_names(wire: Wire, ident: Any) -> None:
    wire.send(call("maths:sleep", ident))
    wire.send({"jsonrpc": "2.0", "method": "$/cancel", "params": {"id": "another"}})
    wire.send({"jsonrpc": "2.0", "method": "$/cancel", "params": {"id": ident}})
    assert bare(await receive(wire)) == error(-32008, ident)
    wire.send(call("maths:subtract", ident, minuend=1, subtrahend=1))
    assert await receive(wire) == result({"value": 0.0}, ident), "the id is free again"


async def test_a_cancel_with_an_id_is_answered(wire: Wire) -> None:
    wire.send(call("maths:sleep", 1))
    wire.send(call("$/cancel", 2, id=1))
    answers = [await receive(wire), await receive(wire)]
    assert bare(answers) == bare([error(-32008, 1), result(None, 2)])


async def test_its_ids_are_apart_from_those_of_ksis_own_frames(wire: Wire) -> None:
    wire.send(call("maths:sleep", 1))
    wire.send({"event": "maths:sleep", "id": 1})
    wire.send({"type": "cancel", "id": 1})
    assert (await receive(wire))["error"]["code"] == "CANCELLED"
    wire.send({"jsonrpc": "2.0", "method": "$/cancel", "params": {"id": 1}})
    assert bare(await receive(wire)) == error(-32008, 1)


async def test_a_live_id_is_refused_and_null_is_not_one(wire: Wire) -> None:
    wire.send(call("maths:sleep", 1))
    wire.send(call("maths:subtract", 1, minuend=1, subtrahend=1))
    assert bare(await receive(wire)) == error(-32002, 1)
    for _ in range(2):
        wire.send(call("maths:sleep", None))
    wire.send(call("maths:subtract", None, minuend=1, subtrahend=1))
    assert await receive(wire) == result({"value": 0.0}, None)


async def test_a_stream_in_a_batch_is_refused_and_the_rest_is_done(wire: Wire) -> None:
    batch = [call("maths:count", 1, to=2), call("maths:subtract", 2, minuend=1, subtrahend=1)]
    assert bare(await exchange(wire, json.dumps(batch))) == [error(-32602, 1), result({"value": 0.0}, 2)]


async def test_a_stream_that_nobody_would_hear_is_not_begun(wire: Wire) -> None:
    notification = {"jsonrpc": "2.0", "method": "maths:count", "params": {"to": 2}}
    assert await exchange(wire, json.dumps(notification)) is None


async def test_a_batch_is_answered_when_the_last_of_it_is(wire: Wire) -> None:
    wire.send(
        json.dumps([call("maths:sleep", 1), call("maths:subtract", 2, minuend=1, subtrahend=1)]).encode()
    )
    wire.send(b"\n")
    wire.send(HEALTH)
    assert (await receive(wire))["id"] == "native"
    wire.send({"jsonrpc": "2.0", "method": "$/cancel", "params": {"id": 1}})
    assert bare(await receive(wire)) == [error(-32008, 1), result({"value": 0.0}, 2)]


async def test_answers_of_a_batch_that_have_no_room_say_so(wire: Wire) -> None:
    wire.send(json.dumps([call("maths:large", ident) for ident in range(5)]).encode() + b"\n")
    async with asyncio.timeout(PATIENCE_S):
        line = await wire.reader.readline()
    assert len(line) < 2 * 1024 * 1024
    answers = json.loads(line)
    assert sorted(answer["id"] for answer in answers) == [0, 1, 2, 3, 4]
    refused = [answer for answer in answers if "error" in answer]
    assert len(refused) == 3
    assert {answer["error"]["data"]["details"]["reason"] for answer in refused} == {"too_large"}


async def test_a_batch_past_the_limit_in_flight_has_an_answer_for_each(write_plugin: WritePlugin) -> None:
    settings = {"limits": {"in_flight": 2}}
    plugin = write_plugin(MATHS, "maths")
    async with running_daemon(plugins=[plugin], settings=settings) as ksi, ksi.connect() as wire:
        wire.send(json.dumps([call("maths:sleep", ident) for ident in range(4)]).encode() + b"\n")
        for ident in (0, 1):
            wire.send({"jsonrpc": "2.0", "method": "$/cancel", "params": {"id": ident}})
        answers = await receive(wire)
    assert bare(answers) == [error(-32008, 0), error(-32008, 1), error(-32005, 2), error(-32005, 3)]


async def test_a_bug_is_an_internal_error(wire: Wire) -> None:
    wire.send(call("maths:fall"))
    answer = await receive(wire)
    assert bare(answer) == error(-32603, 1)
    assert answer["error"]["data"]["code"] == "INTERNAL"


async def test_the_end_of_the_daemon_ends_its_streams(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        wire.send(call("event:subscribe", "s", patterns=["state:*"]))
        assert (await receive(wire))["method"] == "$/caught_up"
        ksi.daemon.lifecycle.stop("test", 1.0)
        assert bare(await receive(wire)) == error(-32006, "s")
