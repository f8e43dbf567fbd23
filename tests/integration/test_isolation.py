"""A handler may sleep, raise, exit or hang: that costs its own request, and no other."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from ksi_daemon.testing import RunningDaemon, Wire, running_daemon
from tests.support.daemon_process import DaemonProcess

from .conftest import LogFile, WritePlugin

PROBE = """
    import asyncio
    import sys
    import threading
    from collections.abc import AsyncIterator
    from typing import Any
    from ksi_daemon.plugin import (
        DataLoss, JsonValue, Message, NotFound, OperationalError, Request, ResourceExhausted, Stream, handler
    )

    opened = asyncio.Event()
    opened_in_thread = threading.Event()

    class Done(Message):
        value: Any = None

    class Number(Message):
        number: float = 0
        value: JsonValue = None

    class Raise(Request[Done], event="probe:raise", safe=True):
        '''Raise what is named.'''
        name: str

    class RaiseInThread(Request[Done], event="probe:raise_in_thread", safe=True):
        '''Raise what is named, in a plain function.'''
        name: str

    class RaiseInStream(Stream[Done], event="probe:raise_in_stream", safe=True):
        '''Give two items, then raise what is named.'''
        name: str

    class Sleep(Request[Done], event="probe:sleep", safe=True):
        '''Wait for probe:open.'''

    class SleepInThread(Request[Done], event="probe:sleep_in_thread", safe=True):
        '''Wait for probe:open, in a plain function.'''

    class Ignore(Request[Done], event="probe:ignore", safe=True):
        '''Wait for probe:open, and do not let oneself be cancelled.'''

    class Open(Request[Done], event="probe:open", safe=True):
        '''Let the others go on.'''

    class Give(Request[Done], event="probe:give", safe=True):
        '''Return what is named.'''
        name: str

    class GiveNumber(Request[Number], event="probe:give_number", safe=True):
        '''Return what is no number.'''
        field: str

    class Items(Stream[Done], event="probe:items", safe=True):
        '''Give what is named as an item.'''
        name: str

    class Endless(Stream[Done], event="probe:endless", safe=True):
        '''Give items for ever.'''

    class Stopped(Request[Done], event="probe:stopped", safe=True):
        '''Wait until the endless stream has been stopped.'''

    stopped = asyncio.Event()

    class Custom(Exception):
        pass

    def deep(n: int) -> int:
        return deep(n + 1)

    def fail(name: str) -> None:
        match name:
            case "NotFound": raise NotFound("no such thing", hint="look elsewhere", thing="x")
            case "ResourceExhausted": raise ResourceExhausted("full", retry_after_s=2)
            case "DataLoss": raise DataLoss()
            case "OperationalError": raise OperationalError("the world is not right", odd={1, 2})
            case "Custom": raise Custom("with two\\nlines")
            case "SystemExit": sys.exit(3)
            case "KeyboardInterrupt": raise KeyboardInterrupt
            case "GeneratorExit": raise GeneratorExit
            case "BaseException": raise BaseException("bottom")
            case "CancelledError": raise asyncio.CancelledError
            case "StopIteration": raise StopIteration
            case "StopAsyncIteration": raise StopAsyncIteration
            case "TimeoutError": raise TimeoutError
            case "MemoryError": raise MemoryError
            case "RecursionError": deep(0)
            case "ExceptionGroup": raise ExceptionGroup("several", [ValueError("a"), KeyError("b")])
            case "BaseExceptionGroup": raise BaseExceptionGroup("several", [SystemExit(1)])
            case "ZeroDivisionError": 1 / 0
            case "AssertionError": assert False
            case "surrogate": raise ValueError("\\ud800")

    @handler
    async def raise_(request: Raise) -> Done:
        fail(request.name)
        return Done()

    @handler
    def raise_in_thread(request: RaiseInThread) -> Done:
        fail(request.name)
        return Done()

    @handler
    async def raise_in_stream(request: RaiseInStream) -> AsyncIterator[Done]:
        yield Done(value=1)
        yield Done(value=2)
        fail(request.name)

    @handler
    async def sleep(request: Sleep) -> Done:
        await opened.wait()
        return Done()

    @handler
    def sleep_in_thread(request: SleepInThread) -> Done:
        opened_in_thread.wait(10)
        return Done()

    @handler
    async def ignore(request: Ignore) -> Done:
        while not opened.is_set():
            try:
                await opened.wait()
            except asyncio.CancelledError:
                pass
        return Done(value="at last")

    @handler
    async def open_(request: Open) -> Done:
        opened.set()
        opened_in_thread.set()
        return Done()

    def unusual(name: str) -> Any:
        circle: list[Any] = []
        circle.append(circle)
        return {
            "None": None,
            "dict": {"value": 1},
            "str": "text",
            "class": Done,
            "object": Done(value=object()),
            "set": Done(value={1}),
            "bytes": Done(value=b"\\xff"),
            "circle": Done(value=circle),
            "deep": Done(value=nested(2000)),
            "surrogate": Done(value="\\ud800"),
            "10 MB": Done(value="x" * 10_000_000),
            "2 MiB": Done(value="x" * (2 * 1024 * 1024)),
            "other": Number(),
        }[name]

    def nested(depth: int) -> list[Any]:
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        return value

    @handler
    async def give(request: Give) -> Done:
        return unusual(request.name)

    @handler
    async def give_number(request: GiveNumber) -> Number:
        return Number(**{request.field: float("nan")})

    @handler
    async def items(request: Items) -> AsyncIterator[Done]:
        yield unusual(request.name)

    @handler
    async def endless(request: Endless) -> AsyncIterator[Done]:
        try:
            while True:
                yield Done(value=0)
                await asyncio.sleep(0)
        finally:
            stopped.set()

    @handler
    async def was_stopped(request: Stopped) -> Done:
        await stopped.wait()
        return Done()
"""

BUGS = (
    "Custom", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException", "CancelledError",
    "StopIteration", "StopAsyncIteration", "TimeoutError", "MemoryError", "RecursionError",
    "ExceptionGroup", "BaseExceptionGroup", "ZeroDivisionError", "AssertionError", "surrogate",
)  # fmt: skip


def tolerant(write_plugin: WritePlugin) -> AbstractAsyncContextManager[RunningDaemon]:
    """Run a daemon as people do: bugs of plugins do not end it."""
    return running_daemon(plugins=[write_plugin(PROBE)], settings={"strict": False})


@pytest.fixture
async def probe(write_plugin: WritePlugin, log_file: LogFile) -> AsyncIterator[RunningDaemon]:
    with log_file.written():
        async with tolerant(write_plugin) as ksi:
            yield ksi
            await ksi.call_raw("probe:open")


async def failures(ksi: RunningDaemon) -> int:
    reply = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
    count: int = reply["failures"]
    return count


async def terminal(wire: Wire, ident: str) -> dict[str, Any]:
    while True:
        frame = await wire.receive()
        if frame["id"] == ident and frame["type"] != "item":
            return frame


# What sleeps.


@pytest.mark.parametrize("how", ["probe:sleep", "probe:sleep_in_thread", "probe:ignore"])
async def test_a_handler_that_sleeps_delays_no_other(probe: RunningDaemon, how: str) -> None:
    async with probe.connect() as wire, probe.connect() as other:
        wire.send({"event": how, "id": "sleeper"})
        for answer in (
            await wire.call("system:health"),
            await other.call("state:set", {"key": "a", "value": 1}),
            await other.call("probe:raise", {"name": "NotFound"}),
        ):
            assert answer["type"] in ("reply", "error")
        wire.send({"event": "probe:open", "id": "opener"})
        assert {(await wire.receive())["id"], (await wire.receive())["id"]} == {"sleeper", "opener"}


async def test_as_many_sleepers_as_there_are_threads_delay_nothing_on_the_loop(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        for n in range(20):
            wire.send({"event": "probe:sleep_in_thread", "id": n})
        assert (await wire.call("system:health"))["type"] == "reply"
        wire.send({"event": "probe:open", "id": "opener"})
        ids = [(await wire.receive())["id"] for _ in range(21)]
    assert sorted(map(str, ids)) == sorted([*map(str, range(20)), "opener"])


# What raises.


@pytest.mark.parametrize("event", ["probe:raise", "probe:raise_in_thread"])
@pytest.mark.parametrize(
    ("name", "code", "details", "retryable"),
    [
        ("NotFound", "NOT_FOUND", {"thing": "x"}, False),
        ("ResourceExhausted", "RESOURCE_EXHAUSTED", {"retry_after_s": 2}, True),
        ("DataLoss", "DATA_LOSS", {}, False),
        ("OperationalError", "UNAVAILABLE", {"odd": "{1, 2}"}, False),
    ],
)
async def test_an_expected_error_gives_its_code_and_no_traceback(
    probe: RunningDaemon,
    log_file: LogFile,
    event: str,
    name: str,
    code: str,
    details: dict[str, Any],
    retryable: bool,
) -> None:
    async with probe.connect() as wire:
        frame = await wire.call(event, {"name": name})
    error = frame["error"]
    assert (frame["type"], error["code"], error["details"], error["retryable"]) == (
        "error", code, details, retryable,
    )  # fmt: skip
    assert await failures(probe) == 0


async def test_an_expected_error_leaves_no_line_in_the_log(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(PROBE)]) as ksi, ksi.connect() as wire:
            for name in ("NotFound", "ResourceExhausted", "DataLoss", "OperationalError"):
                await wire.call("probe:raise", {"name": name})
            await wire.call("probe:nothing")
            await wire.call("state:get", {"kee": 1})
    assert [line for line in log_file.lines() if line["level"] in ("warning", "error")] == []
    assert "Traceback" not in log_file.path.read_text()


@pytest.mark.parametrize("event", ["probe:raise", "probe:raise_in_thread", "probe:raise_in_stream"])
@pytest.mark.parametrize("name", BUGS)
async def test_a_bug_harms_its_own_request_and_leaves_one_traceback(
    write_plugin: WritePlugin, log_file: LogFile, event: str, name: str
) -> None:
    with log_file.written():
        async with tolerant(write_plugin) as ksi, ksi.connect() as wire, ksi.connect() as other:
            wire.send({"event": "probe:sleep", "id": "beside"})
            wire.send({"event": event, "id": "bad", "data": {"name": name}})
            other.send({"event": "probe:sleep", "id": "beside"})
            error = (await terminal(wire, "bad"))["error"]
            assert (await wire.call("probe:open"))["type"] == "reply"
            assert (await terminal(other, "beside"))["type"] == "reply"
            assert await failures(ksi) == 1
    assert error["code"] == "INTERNAL"
    assert error["details"] == {"plugin": "probe"}
    assert "plugin probe failed" in error["message"]
    (line,) = log_file.lines("handler.crashed")
    assert line["plugin"] == "probe"
    assert line["handled"] == event
    assert line["exception"].count("Traceback (most recent call last)") >= 1
    assert "probe.py" in line["exception"]
    assert "probe.py:" in line["where"]
    assert log_file.path.read_text().count('"handler.crashed"') == 1


@pytest.mark.parametrize("name", ["ZeroDivisionError", "SystemExit"])
async def test_where_it_is_strict_a_bug_ends_the_daemon(write_plugin: WritePlugin, name: str) -> None:
    async def ask() -> None:
        async with running_daemon(plugins=[write_plugin(PROBE)]) as ksi, ksi.connect() as wire:
            await wire.call("probe:raise", {"name": name})

    with pytest.raises(ZeroDivisionError if name == "ZeroDivisionError" else RuntimeError):
        await ask()


# What returns something else.


@pytest.mark.parametrize(
    "name",
    ["None", "dict", "str", "class", "other", "object", "bytes", "circle", "deep", "surrogate"],
)
async def test_a_reply_that_is_none_is_an_internal_error(probe: RunningDaemon, name: str) -> None:
    async with probe.connect() as wire:
        error = (await wire.call("probe:give", {"name": name}))["error"]
        assert (await wire.call("system:health"))["type"] == "reply"
    assert error["code"] == "INTERNAL"
    assert await failures(probe) == 1


@pytest.mark.parametrize("field", ["number", "value"])
async def test_a_reply_that_is_no_number_is_an_internal_error(probe: RunningDaemon, field: str) -> None:
    async with probe.connect() as wire:
        assert (await wire.call("probe:give_number", {"field": field}))["error"]["code"] == "INTERNAL"


@pytest.mark.parametrize("name", ["10 MB", "2 MiB"])
@pytest.mark.parametrize("event", ["probe:give", "probe:items"])
async def test_an_answer_that_is_too_large_is_an_error(probe: RunningDaemon, event: str, name: str) -> None:
    async with probe.connect() as wire:
        error = (await wire.call(event, {"name": name}))["error"]
    assert error["code"] == "RESOURCE_EXHAUSTED"
    assert error["details"]["reason"] == "too_large"
    assert error["retryable"] is False


@pytest.mark.parametrize("name", ["None", "dict", "str", "class", "other", "object", "circle"])
async def test_an_item_that_is_none_is_an_internal_error(probe: RunningDaemon, name: str) -> None:
    async with probe.connect() as wire:
        answer = await wire.call("probe:items", {"name": name})
        assert (await wire.call("system:health"))["type"] == "reply"
    assert answer["error"]["code"] == "INTERNAL"
    assert await failures(probe) == 1


# What is stopped.


@pytest.mark.parametrize("event", ["probe:sleep", "probe:sleep_in_thread", "probe:ignore"])
async def test_a_deadline_is_answered_whatever_the_handler_does(probe: RunningDaemon, event: str) -> None:
    async with probe.connect() as wire:
        answer = await wire.call(event, timeout_s=0.05)
        assert (await wire.call("system:health"))["type"] == "reply"
    assert answer["error"]["code"] == "DEADLINE_EXCEEDED"
    assert answer["error"]["retryable"] is True
    assert await failures(probe) == 0


async def test_a_request_that_gives_no_time_has_the_default(write_plugin: WritePlugin) -> None:
    settings = {"limits": {"handler_s": 0.05}}
    async with running_daemon(plugins=[write_plugin(PROBE)], settings=settings) as ksi, ksi.connect() as wire:
        assert (await wire.call("probe:sleep"))["error"]["code"] == "DEADLINE_EXCEEDED"


async def test_a_stream_ends_at_the_deadline_that_its_caller_gives(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        wire.send({"event": "probe:endless", "id": "s", "timeout_s": 0.05})
        assert (await terminal(wire, "s"))["error"]["code"] == "DEADLINE_EXCEEDED"
        assert (await wire.call("probe:stopped"))["type"] == "reply"


@pytest.mark.parametrize("event", ["probe:sleep", "probe:sleep_in_thread"])
async def test_a_cancel_stops_the_handler_and_is_answered(probe: RunningDaemon, event: str) -> None:
    async with probe.connect() as wire:
        wire.send({"event": event, "id": "c"})
        await wire.call("system:health")
        wire.send({"type": "cancel", "id": "c"})
        answer = await wire.receive()
        assert (answer["id"], answer["error"]["code"]) == ("c", "CANCELLED")
        assert (await wire.call(event, id="c", timeout_s=0.05))["error"]["code"] == "DEADLINE_EXCEEDED"
    assert await failures(probe) == 0


async def test_a_cancel_in_one_piece_with_its_request_is_answered(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        wire.send(b'{"event":"probe:sleep","id":"c"}\n{"type":"cancel","id":"c"}\n')
        answer = await wire.receive()
        assert (answer["id"], answer["error"]["code"]) == ("c", "CANCELLED")
        assert (await wire.call("system:health", id="c"))["type"] == "reply"


async def test_a_cancel_twice_is_answered_once(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        wire.send({"event": "probe:sleep", "id": "c"})
        await wire.call("system:health")
        wire.send(b'{"type":"cancel","id":"c"}\n{"type":"cancel","id":"c"}\n')
        assert (await wire.receive())["error"]["code"] == "CANCELLED"
        wire.send({"event": "system:health", "id": "next"})
        assert (await wire.receive())["id"] == "next"


async def test_a_stream_is_stopped_by_a_cancel(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        wire.send({"event": "probe:endless", "id": "s"})
        assert (await wire.receive())["type"] == "item"
        wire.send({"type": "cancel", "id": "s"})
        assert (await terminal(wire, "s"))["error"]["code"] == "CANCELLED"
        assert (await wire.call("probe:stopped"))["type"] == "reply"


async def test_a_stream_is_stopped_when_its_client_goes(probe: RunningDaemon) -> None:
    async with probe.connect() as gone:
        gone.send({"event": "probe:endless", "id": "s"})
        await gone.receive()
    async with probe.connect() as wire:
        assert (await wire.call("probe:stopped"))["type"] == "reply"


async def test_a_handler_that_lets_nobody_stop_it_does_not_hold_up_the_end(write_plugin: WritePlugin) -> None:
    """In a process of its own: its loop is closed, with whatever is left in it."""
    folder = write_plugin(PROBE).parent
    environ = {"KSI_PLUGINS_DIR": json.dumps([str(folder)]), "KSI_LIMITS__DRAIN_S": "0.1"}
    async with DaemonProcess(environ=environ) as daemon:
        reader, writer = await asyncio.open_unix_connection(daemon.socket)
        writer.write(b'{"event":"probe:ignore"}\n{"event":"system:info"}\n')
        assert b'"type":"reply"' in await reader.readline()
        assert await daemon.stop() == 0
        writer.close()
