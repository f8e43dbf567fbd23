"""A client becomes the handler of events, in any language; what it does wrong costs its own calls only."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import field_validator

from ksi_client import AsyncClient, Served, serve
from ksi_common.errors import InvalidArgument, KSIError, NotFound
from ksi_common.events import state
from ksi_common.messages import Message, Request, Stream
from ksi_daemon.testing import RunningDaemon, Wire, running_daemon

from .conftest import WritePlugin

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "remote"

GET: Mapping[str, Any] = {
    "event": "weather:get",
    "safe": True,
    "summary": "Tell the weather.",
    "schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1, "description": "Where."},
            "days": {"type": "integer", "default": 3, "minimum": 1},
        },
        "required": ["city"],
    },
    "reply": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}
FOLLOW: Mapping[str, Any] = {
    "event": "weather:follow",
    "kind": "stream",
    "safe": True,
    "schema": {"type": "object"},
}
SET: Mapping[str, Any] = {"event": "weather:set", "schema": {"type": "object"}}


@pytest.fixture
async def ksi() -> AsyncIterator[RunningDaemon]:
    async with running_daemon(settings={"strict": False}) as running:
        yield running


@asynccontextmanager
async def server(ksi: RunningDaemon, *events: Mapping[str, Any], **more: Any) -> AsyncIterator[Wire]:
    """A connection that serves, and has been told so."""
    async with ksi.connect() as wire:
        data = {"name": "weather", "events": list(events or (GET,)), **more}
        wire.send({"event": "plugin:serve", "id": "serve", "data": data})
        assert (await wire.receive())["type"] == "item"
        yield wire


async def refused(ksi: RunningDaemon, *events: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    async with ksi.connect() as wire:
        answer = await wire.call(
            "plugin:serve", {"name": "weather", "events": list(events or (GET,)), **more}
        )
        error: dict[str, Any] = answer["error"]
        return error


def ask(wire: Wire, ident: str, city: str = "Oslo", **frame: Any) -> None:
    wire.send({"event": "weather:get", "id": ident, "data": {"city": city}, **frame})


def reply(wire: Wire, call: Mapping[str, Any], **data: Any) -> None:
    wire.send({"type": "reply", "id": call["id"], "data": data})


async def test_a_client_answers_what_it_declares(ksi: RunningDaemon) -> None:
    async with server(ksi) as weather, ksi.connect() as wire:
        ask(wire, "1", correlation_id="c1")
        call = await weather.receive()
        assert (call["type"], call["event"], call["correlation_id"], call["actor"]) == (
            "call", "weather:get", "c1", "owner",
        )  # fmt: skip
        assert call["data"] == {"city": "Oslo", "days": 3}
        assert 20 < call["timeout_s"] <= 30
        reply(weather, call, text="sunny")
        answer = await wire.receive()
    assert (answer["id"], answer["event"], answer["data"]) == ("1", "weather:get", {"text": "sunny"})


async def test_it_is_in_discovery_and_help_and_among_the_plugins_as_remote(ksi: RunningDaemon) -> None:
    async with server(ksi, version="1.2"):
        (described,) = (await ksi.call_raw("system:discover", {"namespace": "weather"}))["events"]["weather"]
        help_ = await ksi.call_raw("system:help", {"event": "weather:get"})
        details = await ksi.call_raw("plugin:inspect", {"plugin_name": "weather"})
    assert described == help_
    assert (help_["plugin"], help_["remote"], help_["summary"], help_["safe"]) == (
        "weather", True, "Tell the weather.", True,
    )  # fmt: skip
    assert (
        help_["parameters"]["city"] | {"description": "Where.", "required": True}
        == help_["parameters"]["city"]
    )
    assert help_["parameters"]["days"]["default"] == 3
    assert help_["reply"]["required"] == ["text"]
    assert (details["origin"], details["remote"], details["connections"], details["version"]) == (
        "remote", True, 1, "1.2",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ({"citty": "x"}, 'weather:get has no field "citty"', 'did you mean "city"?'),
        ({}, "weather:get needs the field city", None),
        ({"city": ""}, "city: string should have at least 1 character", None),
        ({"city": "x", "days": "3"}, "days: input should be a valid integer", None),
    ],
)
async def test_data_that_does_not_fit_does_not_reach_it(
    ksi: RunningDaemon, data: dict[str, Any], message: str, hint: str | None
) -> None:
    async with server(ksi), ksi.connect() as wire:
        error = (await wire.call("weather:get", data))["error"]
    assert error["code"] == "INVALID_ARGUMENT"
    assert message in error["message"]
    assert hint in (None, error["hint"])


async def test_its_errors_are_the_callers(ksi: RunningDaemon) -> None:
    async with server(ksi) as weather, ksi.connect() as wire:
        ask(wire, "1")
        call = await weather.receive()
        error = {"code": "NOT_FOUND", "message": "no such city", "details": {"city": "x"}, "hint": "spell it"}
        weather.send({"type": "error", "id": call["id"], "error": error})
        assert (await wire.receive())["error"] == {**error, "retryable": False}


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ({"type": "reply", "data": {}}, "its answer does not fit what it declares: text: Field required"),
        ({"type": "reply", "data": {"text": 5}}, "text: Input should be a valid string"),
        ({"type": "error", "error": {"code": "INTERNAL", "message": "KeyError"}}, "KeyError"),
        ({"type": "end"}, "a request with reply, not end"),
        ({"type": "item", "data": {}}, "a request is answered with reply, not item"),
    ],
)
async def test_a_bug_of_its_own_is_named_and_counted(
    ksi: RunningDaemon, frame: dict[str, Any], says: str
) -> None:
    async with server(ksi) as weather, ksi.connect() as wire:
        ask(wire, "1")
        weather.send({**frame, "id": (await weather.receive())["id"]})
        error = (await wire.receive())["error"]
        failures = (await ksi.call_raw("plugin:inspect", {"plugin_name": "weather"}))["failures"]
    assert (error["code"], error["details"], failures) == ("INTERNAL", {"plugin": "weather"}, 1)
    assert says in error["message"]


async def test_an_answer_to_nothing_is_passed_over(ksi: RunningDaemon) -> None:
    async with server(ksi) as weather, ksi.connect() as wire:
        weather.send({"type": "reply", "id": "d99", "data": {}})
        wire.send({"type": "reply", "id": "d1", "data": {}})  # of one that serves nothing
        assert (await wire.receive())["error"]["message"] == "the frame names no event"
        wire.send({"type": "reply", "data": {}})
        assert (await wire.receive())["error"]["details"]["field"] == "id"
        ask(wire, "1")
        reply(weather, await weather.receive(), text="x", event="more")
        assert (await wire.receive())["data"] == {"text": "x", "event": "more"}


async def test_a_stream_is_served_item_by_item(ksi: RunningDaemon) -> None:
    async with server(ksi, FOLLOW) as weather, ksi.connect() as wire:
        wire.send({"event": "weather:follow", "id": "f"})
        call = await weather.receive()
        for number in range(3):
            weather.send({"type": "item", "id": call["id"], "data": {"n": number}})
        weather.send({"type": "end", "id": call["id"]})
        assert [(await wire.receive()).get("data") for _ in range(4)] == [{"n": 0}, {"n": 1}, {"n": 2}, None]
        wire.send({"event": "weather:follow", "id": "g"})
        call = await weather.receive()
        wire.send({"type": "cancel", "id": "g"})
        assert (await wire.receive())["error"]["code"] == "CANCELLED"
        assert await weather.receive() == {"type": "cancel", "id": call["id"]}


async def test_what_nobody_wants_any_more_is_revoked(ksi: RunningDaemon) -> None:
    async with server(ksi) as weather, ksi.connect() as wire:
        ask(wire, "1", timeout_s=0.05)
        call = await weather.receive()
        assert call["timeout_s"] <= 0.05
        assert (await wire.receive())["error"]["code"] == "DEADLINE_EXCEEDED"
        assert await weather.receive() == {"type": "cancel", "id": call["id"]}
        reply(weather, call, text="late")
        ask(wire, "2")
        call = await weather.receive()
        wire.send({"type": "cancel", "id": "2"})
        assert (await wire.receive())["error"]["code"] == "CANCELLED"
        assert (await weather.receive())["type"] == "cancel"


async def test_each_of_several_that_are_late_is_told_so_and_counted(ksi: RunningDaemon) -> None:
    async with server(ksi), ksi.connect() as wire:
        for ident in ("1", "2"):  # at once: they are late in the same tick
            ask(wire, ident, timeout_s=0.05)
        late = [await wire.receive(), await wire.receive()]
        ask(wire, "3", timeout_s=0.05)
        late.append(await wire.receive())
        ask(wire, "4")
        wire.send({"type": "cancel", "id": "4"})
        assert (await wire.receive())["error"]["code"] == "CANCELLED"
        figures = ksi.daemon.observation.statistics["weather:get"]
        assert (figures.handled, figures.failed) == (4, 4)
    assert [(each["id"], each["error"]["code"]) for each in late] == [
        (ident, "DEADLINE_EXCEEDED") for ident in ("1", "2", "3")
    ]


async def test_calls_are_spread_over_the_clients_of_one_name(ksi: RunningDaemon) -> None:
    async with server(ksi) as one, server(ksi) as two, ksi.connect() as wire:
        for number in range(4):
            ask(wire, str(number))
        calls = [(each, await each.receive()) for each in (one, two, one, two)]
        for each, call in calls:
            reply(each, call, text="x")
        assert {(await wire.receive())["id"] for _ in range(4)} == {"0", "1", "2", "3"}


async def test_more_than_it_takes_at_once_waits_for_its_turn(ksi: RunningDaemon) -> None:
    async with server(ksi, max_in_flight=1) as weather, ksi.connect() as wire:
        for number in range(3):
            ask(wire, str(number), city=f"c{number}")
        for number in range(3):
            call = await weather.receive()
            assert call["data"]["city"] == f"c{number}"
            assert (await ksi.call_raw("system:health"))["status"]
            reply(weather, call, text=str(number))
            assert (await wire.receive())["data"] == {"text": str(number)}


async def test_what_waited_for_a_client_to_read_is_asked_once_it_has(ksi: RunningDaemon) -> None:
    """It has nothing at work, whose end would make room: it had too much of other things unread."""
    async with server(ksi) as weather, ksi.connect() as wire:
        weather.send({"event": "event:subscribe", "id": "s", "data": {"patterns": ["demo:*"]}})
        assert (await weather.receive())["type"] == "caught_up"
        weather.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport is both
        for n in range(40):
            await ksi.call_raw("event:publish", {"event": "demo:told", "data": {"text": f"{n}" * 50_000}})
        ask(wire, "1")
        assert (await wire.call("system:health"))["type"] == "reply"  # and the call before it has begun
        weather.writer.transport.resume_reading()  # type: ignore[attr-defined]
        while (frame := await weather.receive())["type"] != "call":
            assert frame["id"] == "s"
        reply(weather, frame, text="sunny")
        assert (await wire.receive())["data"] == {"text": "sunny"}


async def test_what_waits_is_bounded_and_says_when_to_come_back(
    ksi: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ksi_daemon.remote.registry.MAX_WAITING", 2)
    async with server(ksi, max_in_flight=1), ksi.connect() as wire:
        for number in range(4):
            ask(wire, str(number))
        error = (await wire.receive())["error"]
    assert (error["code"], error["details"]["reason"]) == ("RESOURCE_EXHAUSTED", "servers_full")


async def test_what_nobody_waits_for_any_more_takes_no_place_from_what_does(
    ksi: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one call that waited on, those that were cancelled kept their places, and all others out."""
    monkeypatch.setattr("ksi_daemon.remote.registry.MAX_WAITING", 2)
    async with server(ksi, max_in_flight=1) as weather, ksi.connect() as wire:
        for ident in ("works", "waits", "cancelled"):
            ask(wire, ident)
        wire.send({"type": "cancel", "id": "cancelled"})
        assert (await wire.receive())["error"]["code"] == "CANCELLED"
        ask(wire, "late")
        for ident in ("works", "waits", "late"):
            reply(weather, await weather.receive(), text=ident)
            answer = await wire.receive()
            assert (answer["id"], answer["data"]) == (ident, {"text": ident})


async def test_its_death_is_unavailable_at_once_and_another_takes_over(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire, server(ksi) as two:
        async with server(ksi) as one:
            ask(wire, "1")
            ask(wire, "2")
            calls = [(each, await each.receive()) for each in (two, one)]
            one.close()
            error = (await wire.receive())["error"]
            assert (error["code"], error["details"]["reason"]) == ("UNAVAILABLE", "server_gone")
            assert error["retryable"] is True
        ask(wire, "3")
        reply(two, await two.receive(), text="three")
        assert (await wire.receive())["data"] == {"text": "three"}
        reply(two, calls[0][1], text="first")
        assert (await wire.receive())["data"] == {"text": "first"}


async def test_where_none_is_left_it_is_unavailable_until_one_is_back(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        async with server(ksi, max_in_flight=1) as one:
            for number in range(3):
                ask(wire, str(number))
            await one.receive()
        assert [(await wire.receive())["error"]["code"] for _ in range(3)] == ["UNAVAILABLE"] * 3
        assert (await wire.call("weather:get", {"city": "x"}))["error"]["details"]["reason"] == "server_gone"
        assert "weather" not in (await ksi.call_raw("system:discover"))["namespaces"]
        async with server(ksi) as again:
            ask(wire, "again")
            reply(again, await again.receive(), text="back")
            assert (await wire.receive())["data"] == {"text": "back"}


async def test_joining_and_leaving_are_told(ksi: RunningDaemon) -> None:
    async with server(ksi), server(ksi):
        pass
    async with AsyncClient(ksi.paths.socket) as client:
        async for told in client.subscribe("plugin:*", start="beginning"):
            if told.event == "plugin:left" and told.data["servers"] == 0:
                break
    assert [told["servers"] for told in ksi.emitted("plugin:joined")] == [1, 2]


async def test_what_changes_something_leaves_its_row_before_its_reply(ksi: RunningDaemon) -> None:
    async with server(ksi, SET) as weather, ksi.connect() as wire:
        wire.send({"event": "weather:set", "id": "1", "data": {}, "idempotency_key": "k"})
        reply(weather, await weather.receive(), done=True)
        assert (await wire.receive())["data"] == {"done": True}
        again = await wire.call("weather:set", {}, idempotency_key="k")
        assert again["data"] == {"done": True}
        wire.send({"event": "weather:set", "id": "2", "data": {}})
        reply(weather, await weather.receive(), done=2)
        assert (await wire.receive())["data"] == {"done": 2}
    logged = await ksi.call_raw("event:query", {"patterns": ["weather:set"]})
    assert [event["kind"] for event in logged["events"]] == ["request", "request"]


@pytest.mark.parametrize(
    ("event", "more", "code", "says"),
    [
        ({"event": "state:get", "schema": {}}, {}, "ALREADY_EXISTS", "state:get is handled by plugin state"),
        (GET, {"name": "state"}, "ALREADY_EXISTS", "the name state is taken by ksi_state"),
        ({**GET, "schema": {"type": "array"}}, {}, "INVALID_ARGUMENT", "must be that of an object"),
        (
            {**GET, "schema": {"properties": {"a": {"type": "string", "pattern": "("}}}},
            {},
            "INVALID_ARGUMENT",
            "the schema of weather:get cannot be used",
        ),
        ({**GET, "event": "Bad"}, {}, "INVALID_ARGUMENT", "event"),
    ],
)
async def test_what_cannot_be_served_is_refused(
    ksi: RunningDaemon, event: dict[str, Any], more: dict[str, Any], code: str, says: str
) -> None:
    error = await refused(ksi, event, **more)
    assert error["code"] == code
    assert says in error["message"]


async def test_another_schema_under_the_same_name_is_refused(ksi: RunningDaemon) -> None:
    async with server(ksi):
        error = await refused(ksi, {**GET, "schema": {"type": "object"}})
    assert (error["code"], error["details"]["reason"]) == ("FAILED_PRECONDITION", "other_schema")


async def test_a_connection_serves_once_and_the_daemon_itself_not_at_all(ksi: RunningDaemon) -> None:
    async with server(ksi) as weather:
        again = {"name": "other", "events": [dict(SET)]}
        assert "serves already" in (await weather.call("plugin:serve", again))["error"]["message"]


async def test_an_event_that_a_plugin_declares_and_leaves_to_others_is_implemented(
    write_plugin: WritePlugin,
) -> None:
    declares = """
        from ksi_daemon.plugin import Answers, Message, Request, handler

        class Said(Message):
            text: str

        class Say(Request[Said], event="say:it", safe=True):
            '''Say it.'''
            word: str

        class Ask(Request[Answers[Said]], event="say:all", answers="all", safe=True):
            '''Ask all.'''

        @handler
        async def mine(request: Ask) -> Said:
            return Said(text="in")
    """
    events = ({"event": "say:it"}, {"event": "say:all"})
    async with (
        running_daemon(plugins=[write_plugin(declares, "say")]) as own,
        server(own, *events) as weather,
        own.connect() as wire,
    ):
        assert (await wire.call("say:it", {"wort": "x"}))["error"]["hint"] == 'did you mean "word"?'
        wire.send({"event": "say:it", "id": "1", "data": {"word": "x"}})
        reply(weather, await weather.receive(), text="said")
        assert (await wire.receive())["data"] == {"text": "said"}
        wire.send({"event": "say:all", "id": "2"})
        reply(weather, await weather.receive(), text="out")
        answers = (await wire.receive())["data"]["answers"]
        assert [(each["plugin"], each["value"]["text"]) for each in answers] == [
            ("say", "in"),
            ("weather", "out"),
        ]


# The Python library


class Doubled(Message):
    n: int


class Double(Request[Doubled], event="math:double", safe=True):
    """Double a number."""

    n: int

    @field_validator("n")
    @classmethod
    def _is_no_bad_luck(cls, n: int) -> int:
        if n == 13:
            raise ValueError("that brings bad luck")
        return n


class Upto(Stream[Doubled], event="math:upto", safe=True):
    """Count."""

    n: int


async def double(request: Double) -> Doubled:
    if request.n == 404:
        raise NotFound("no such number", hint="another")
    return Doubled(n=request.n * 2 if request.n else 1 // request.n)


async def upto(request: Upto) -> AsyncIterator[Doubled]:
    for n in range(request.n):
        yield Doubled(n=n)


@asynccontextmanager
async def serving(ksi: RunningDaemon, *handlers: Any) -> AsyncIterator[asyncio.Task[None]]:
    ready = asyncio.Event()
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(serve(*handlers, name="math", socket=ksi.paths.socket, ready=ready.set))
        await ready.wait()
        yield task
        task.cancel()


async def test_python_serves_typed_handlers(ksi: RunningDaemon) -> None:
    async with serving(ksi, double, upto), AsyncClient(ksi.paths.socket) as client:
        assert (await client.call(Double(n=4))).n == 8
        assert [item.n async for item in client.stream(Upto(n=3))] == [0, 1, 2]
        with pytest.raises(NotFound, match="no such number"):
            await client.call(Double(n=404))
        with pytest.raises(KSIError, match=r"plugin math failed in math:double: ZeroDivisionError"):
            await client.call(Double(n=0))
        with pytest.raises(InvalidArgument, match="n: that brings bad luck") as refused:
            await client.call_raw("math:double", {"n": 13})
        assert refused.value.details["field"] == "n"
        help_ = await client.call_raw("system:help", {"event": "math:double"})
        assert help_["summary"] == "Double a number."


def _nested(depth: int) -> list[Any]:
    return [] if depth == 0 else [_nested(depth - 1)]


async def _no_number(request: Double) -> Doubled:
    return Doubled.model_validate({"n": "four"})


async def _no_message(request: Double) -> Doubled:
    return 4  # type: ignore[return-value]


def _not_async(request: Double) -> Doubled:
    return Doubled(n=4)


@pytest.mark.parametrize(
    ("handler", "error", "offset"),
    [(_no_number, "ValidationError", 1), (_no_message, "TypeError", 0), (_not_async, "TypeError", 0)],
)
async def test_a_bug_is_placed_in_the_program_of_its_author(
    ksi: RunningDaemon, handler: Any, error: str, offset: int
) -> None:
    line = handler.__code__.co_firstlineno + offset
    async with serving(ksi, handler):
        bug = await ksi.call_error("math:double", {"n": 4})
    assert bug.message == f"plugin math failed in math:double: {error} (test_remote_handlers.py:{line})"


async def test_python_answers_where_what_a_handler_waits_for_was_cancelled(ksi: RunningDaemon) -> None:
    async def wait(request: Double) -> Doubled:
        work = asyncio.get_running_loop().create_future()
        work.cancel()
        return Doubled(n=await work)

    async with serving(ksi, wait), ksi.connect() as wire:
        error = (await wire.call("math:double", {"n": 2}))["error"]
    assert error["code"] == "INTERNAL"
    assert "CancelledError" in error["message"]


async def test_python_serves_on_after_an_answer_that_is_no_json(ksi: RunningDaemon) -> None:
    async def say(data: dict[str, Any]) -> dict[str, Any]:
        if data["how"] == "raised":
            raise NotFound("nothing", looked_in={1, 2})
        return {"said": {1, 2} if data["how"] == "given" else []}

    schema = {"type": "object", "properties": {"how": {"type": "string"}}}
    async with serving(ksi, Served("say:it", say, schema=schema)):
        for how in ("given", "raised"):
            bug = await ksi.call_error("say:it", {"how": how})
            assert "plugin math failed in say:it: TypeError" in bug.message
        assert await ksi.call_raw("say:it", {"how": "well"}) == {"said": []}


@pytest.mark.parametrize("said", ["x" * 1_100_000, 2**60, _nested(70)], ids=["long", "large_number", "deep"])
async def test_python_serves_on_after_an_answer_that_the_daemon_does_not_take(
    ksi: RunningDaemon, said: Any
) -> None:
    """A line that was too long ended the program; of another the caller heard nothing until its deadline."""

    async def say(data: dict[str, Any]) -> dict[str, Any]:
        return {"said": said if data["how"] == "wrong" else "well"}

    schema = {"type": "object", "properties": {"how": {"type": "string"}}}
    async with serving(ksi, Served("say:it", say, schema=schema)):
        bug = await ksi.call_error("say:it", {"how": "wrong"})
        assert "plugin math failed in say:it: ValueError" in bug.message
        assert await ksi.call_raw("say:it", {"how": "well"}) == {"said": "well"}


async def test_python_serves_plain_handlers_by_their_schemas(ksi: RunningDaemon) -> None:
    async def say(data: dict[str, Any], asked: Any) -> dict[str, Any]:
        return {"text": f"{data['text']} {asked.actor}"}

    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    async with serving(ksi, Served("say:it", say, safe=True, schema=schema)):
        assert await ksi.call_raw("say:it", {"text": "hi"}) == {"text": "hi owner"}


async def test_python_does_what_it_is_asked_before_it_is_told_that_it_serves(ksi: RunningDaemon) -> None:
    """What waited for a client with room is asked of the next one before anything else is said to it."""
    ready = asyncio.Event()

    async def say(data: dict[str, Any]) -> dict[str, Any]:
        await ready.wait()
        return data

    served = Served("say:it", say, safe=True, schema={"type": "object"})
    async with server(ksi, served.declaration(), max_in_flight=1) as full, ksi.connect() as wire:
        for ident in ("1", "2"):
            wire.send({"event": "say:it", "id": ident})
        wire.send({"event": "system:health", "id": "both are there"})
        assert (await full.receive())["event"] == "say:it"
        assert (await wire.receive())["id"] == "both are there"
        async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(serve(served, name="weather", socket=ksi.paths.socket, ready=ready.set))
            assert (await wire.receive())["id"] == "2"
            task.cancel()


async def test_python_begins_nothing_while_it_ends(
    ksi: RunningDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that takes its time to end leaves the client connected, and the daemon may ask."""
    begun, ending, end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def say(data: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await end.wait()
        return data

    served = Served("say:it", say, safe=True, schema={"type": "object"})
    async with ksi.connect() as wire, serving(ksi, served) as task:
        wire.send({"event": "say:it", "id": "1"})
        await begun.wait()
        task.cancel()
        await ending.wait()
        wire.send({"event": "say:it", "id": "2"})
        await ksi.call_raw("system:health")
        end.set()
        answers = [await wire.receive() for _ in range(2)]
    assert {answer["error"]["details"]["reason"] for answer in answers} == {"server_gone"}
    assert caplog.records == []


async def test_python_is_told_where_the_daemon_refuses_it(ksi: RunningDaemon) -> None:
    async def get(request: state.Get) -> state.Found:
        raise NotFound("never")

    with pytest.raises(KSIError, match="state:get is handled by plugin state already"):
        await serve(get, name="math", socket=ksi.paths.socket)


async def test_a_handler_that_names_no_event_is_refused_before_the_daemon_is_asked() -> None:
    async def odd(request: int) -> None: ...

    with pytest.raises(TypeError, match=r"the first parameter of .*odd must be annotated"):
        await serve(odd, name="x")


async def test_python_serves_again_after_the_daemon_was_gone(tmp_path: Any) -> None:
    home = tmp_path / "kept" / "var"
    ready = asyncio.Queue[None]()
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        async with running_daemon(home=home) as ksi:
            task = tasks.create_task(
                serve(double, name="math", socket=ksi.paths.socket, ready=lambda: ready.put_nowait(None))
            )
            await ready.get()
            assert await ksi.call_raw("math:double", {"n": 2}) == {"n": 4}
        async with running_daemon(home=home) as ksi:
            await ready.get()
            assert await ksi.call_raw("math:double", {"n": 3}) == {"n": 6}
        task.cancel()


@pytest.mark.parametrize(
    ("command", "event", "data"),
    [
        (("node", "serve.mjs"), "echo:say", {"text": "hi"}),
        (("sh", "serve.sh"), "shell:uptime", {}),
        (("python", "serve.py"), "words:count", {"text": "a b a"}),
    ],
)
async def test_the_examples_in_three_languages_serve(
    ksi: RunningDaemon, command: tuple[str, str], event: str, data: dict[str, Any]
) -> None:
    for program in (command[0], *(["nc"] if command[0] == "sh" else [])):
        if shutil.which(program) is None and program != "python":
            pytest.skip(f"{program} is not on this machine")
    program = sys.executable if command[0] == "python" else command[0]
    script = EXAMPLES / command[1]
    socket = str(ksi.paths.socket)
    process = await asyncio.create_subprocess_exec(
        program,
        str(script),
        socket,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "KSI_SOCKET": socket},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(50):
            assert b"serving" in await process.stdout.readline()
        answer = await ksi.call_raw(event, data)
        assert answer
        help_ = await ksi.call_raw("system:help", {"event": event})
        assert help_["remote"] is True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
