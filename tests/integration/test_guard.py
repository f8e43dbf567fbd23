"""What a plugin does wrong while it runs is named, counted and, where it harms the others, stopped."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from structlog.testing import capture_logs

from ksi_daemon import guard, watchdog
from ksi_daemon.catalog import Catalog
from ksi_daemon.testing import RunningDaemon, running_daemon
from tests.support.waiting import eventually

from .conftest import LogFile, WritePlugin

PROBE = """
    import asyncio
    import threading
    import time
    from ksi_daemon.plugin import Bus, Message, Notification, Request, handler, hookimpl, layer, subscriber

    class Done(Message):
        n: int = 0

    class Hold(Request[Done], event="probe:hold", safe=True):
        '''Hold the loop.'''
        seconds: float
        how: str = "sleep"

    class Ask(Request[Done], event="probe:ask", safe=True):
        '''Answer.'''

    class Wait(Request[Done], event="probe:wait", safe=True):
        '''Wait for probe:open, whatever happens.'''

    class Hog(Request[Done], event="probe:hog", safe=True):
        '''Keep a thread.'''

    class Open(Request[Done], event="probe:open", safe=True):
        '''Let the others go on.'''

    class Leak(Request[Done], event="probe:leak", safe=True):
        '''Start tasks that never end.'''
        tasks: int

    class Told(Notification, event="probe:told"):
        n: int

    class Seen(Request[Done], event="probe:seen", safe=True):
        '''Tell how many were heard.'''

    opened, unlocked, seen, leaked = asyncio.Event(), threading.Event(), [], []

    def compute(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(range(1000))

    @handler
    async def hold(request: Hold) -> Done:
        if request.how == "sleep":
            time.sleep(request.seconds)  # held here
        else:
            compute(request.seconds)
        return Done()

    @handler
    async def ask(request: Ask) -> Done:
        return Done(n=1)

    @handler
    async def wait(request: Wait) -> Done:
        while not opened.is_set():
            try:
                await opened.wait()  # stuck here
            except asyncio.CancelledError:
                pass
        return Done()

    @handler
    def hog(request: Hog) -> Done:
        unlocked.wait(20)
        return Done()

    @handler
    async def open_(request: Open) -> Done:
        opened.set()
        unlocked.set()
        for task in leaked:
            task.cancel()
        return Done()

    async def for_ever():
        await asyncio.Event().wait()

    @handler
    async def leak(request: Leak) -> Done:
        leaked.extend(asyncio.get_running_loop().create_task(for_ever()) for _ in range(request.tasks))
        return Done()

    @subscriber
    async def hear(told: Told) -> None:
        seen.append(told.n)

    @handler
    async def count(request: Seen) -> Done:
        return Done(n=len(seen))

    @layer(namespaces=["other"])
    async def guarding(envelope, send, call_next):
        seen.append(0)
        await call_next(envelope, send)

    @hookimpl
    def ksi_middleware():
        return [guarding]

    @hookimpl
    def ksi_event_handled(envelope):
        if envelope.event == "other:ask":
            seen.append(1)
"""

OTHER = """
    from ksi_daemon.plugin import Message, Request, handler

    class Done(Message):
        n: int = 0

    class Ask(Request[Done], event="other:ask", safe=True):
        '''Answer, in a thread.'''

    @handler
    def ask(request: Ask) -> Done:
        return Done(n=2)
"""


@asynccontextmanager
async def running(write_plugin: WritePlugin, **limits: Any) -> AsyncIterator[RunningDaemon]:
    files = [write_plugin(PROBE), write_plugin(OTHER, "other")]
    settings = {"strict": False, "limits": limits}
    async with running_daemon(plugins=files, settings=settings) as ksi:
        yield ksi
        ksi.daemon.assembly.table._off.clear()
        ksi.daemon.assembly.table.arrange()
        await ksi.call_raw("probe:open")


async def details(ksi: RunningDaemon, plugin: str = "probe") -> dict[str, Any]:
    return await ksi.call_raw("plugin:inspect", {"plugin_name": plugin})


def line_of(mark: str) -> int:
    return next(n for n, line in enumerate(PROBE.lstrip("\n").splitlines(), 1) if mark in line)


@pytest.mark.parametrize(
    ("how", "where"), [("sleep", lambda: line_of("# held here")), ("compute", lambda: None)]
)
async def test_who_holds_the_loop_is_named_while_it_does_and_counted(
    write_plugin: WritePlugin, log_file: LogFile, how: str, where: Callable[[], int | None]
) -> None:
    with log_file.written():
        async with running(write_plugin) as ksi:
            await ksi.call_raw("probe:hold", {"seconds": 3, "how": how})
            figures = (await details(ksi))["figures"]
            assert await ksi.call_raw("probe:ask") == {"n": 1}
    held = [line for line in log_file.lines("loop.held") if line["plugin"] == "probe"]
    resumed = [line for line in log_file.lines("loop.resumed") if line["plugin"] == "probe"]
    assert len(held) == len(resumed) == figures["held"] == 1
    assert held[0]["held_s"] < resumed[0]["held_s"] == figures["held_s"]
    assert held[0]["where"].startswith("probe.py:")
    if where() is not None:
        assert held[0]["where"] == f"probe.py:{where()}"
        assert held[0]["code"] == "time.sleep(request.seconds)  # held here"


async def test_a_loop_that_turns_is_not_held_however_busy(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    with log_file.written():
        async with running(write_plugin) as ksi, ksi.connect() as wire:
            stalls = 0
            for _ in range(30):
                begun = monotonic()
                await wire.call("probe:hold", {"seconds": 0.02})
                stalls += monotonic() - begun > 0.1
            assert (await details(ksi))["figures"]["held"] <= stalls, "of the machine"
    assert len([line for line in log_file.lines("loop.held") if line["plugin"] == "probe"]) <= stalls


async def test_a_plugin_that_holds_the_loop_for_long_is_switched_off_and_the_rest_runs(
    write_plugin: WritePlugin, log_file: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with log_file.written():
        async with running(write_plugin) as ksi, ksi.connect() as wire:
            await ksi.call_raw("other:ask")
            before = (await ksi.call_raw("probe:seen"))["n"]
            assert before == 2  # its layer and its observer saw it
            monkeypatch.setattr(guard, "QUARANTINE_S", 0.3)

            async def is_off() -> bool:  # who looks may be kept from looking for a while, as anybody
                await wire.call("probe:hold", {"seconds": 0.6})
                return bool((await details(ksi))["status"] == "quarantined")

            await eventually(is_off)
            error = (await wire.call("probe:ask"))["error"]
            assert await ksi.call_raw("other:ask") == {"n": 2}
            module: Any = ksi.daemon.catalog.plugins["probe"].module
            assert len(module.seen) == before

            async def is_told() -> bool:
                return bool(ksi.emitted("plugin:quarantined"))

            await eventually(is_told)
            (told,) = ksi.emitted("plugin:quarantined")
    assert (error["code"], error["details"]) == ("UNAVAILABLE", {"reason": "quarantined", "plugin": "probe"})
    assert told["plugin"] == "probe"
    assert "it held the loop for" in told["reason"]
    assert f"probe.py:{line_of('# held here')}" in told["reason"]
    assert len(log_file.lines("plugin.quarantined")) == 1


async def test_a_handler_that_is_late_is_named_and_one_that_goes_on_is_counted(
    write_plugin: WritePlugin, log_file: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "STUCK_S", 0.01)
    with log_file.written():
        async with running(write_plugin) as ksi, ksi.connect() as wire:
            answer = await wire.call("probe:wait", timeout_s=0.05)
            assert answer["error"]["code"] == "DEADLINE_EXCEEDED"

            async def is_stuck() -> bool:
                return bool((await details(ksi))["figures"]["stuck"] == 1)

            await eventually(is_stuck)
            await ksi.call_raw("probe:open")

            async def is_over() -> bool:
                return bool((await details(ksi))["figures"]["stuck"] == 0)

            await eventually(is_over)
    where = f"probe.py:{line_of('# stuck here')}"
    for event in ("handler.late", "handler.stuck"):
        (line,) = log_file.lines(event)
        assert (line["plugin"], line["handled"], line["where"]) == ("probe", "probe:wait", where)


async def test_a_slow_handler_is_named(write_plugin: WritePlugin, log_file: LogFile) -> None:
    with log_file.written():
        async with running(write_plugin, slow_s=0.05) as ksi:
            await ksi.call_raw("probe:hold", {"seconds": 0.1})
            assert (await details(ksi))["figures"]["slow"] == 1
    assert ("probe", "probe:hold") in [(x["plugin"], x["handled"]) for x in log_file.lines("handler.slow")]


async def test_a_plugin_that_keeps_all_its_threads_keeps_no_others(write_plugin: WritePlugin) -> None:
    async with running(write_plugin) as ksi, ksi.connect() as wire:
        for number in range(20):
            wire.send({"event": "probe:hog", "id": f"hog{number}"})
        assert await ksi.call_raw("other:ask") == {"n": 2}
        await ksi.call_raw("probe:open")
        for _ in range(20):
            assert (await wire.receive())["type"] == "reply"


async def test_what_a_plugin_did_is_in_its_figures(write_plugin: WritePlugin) -> None:
    async with running(write_plugin) as ksi, ksi.connect() as wire:
        await wire.call("probe:ask")
        await wire.call("probe:ask", {"x": 1})
        figures = (await details(ksi))["figures"]
    assert (figures["handled"], figures["failed"]) == (2, 1)
    assert figures["seconds"] > 0


async def test_a_plugin_that_leaks_tasks_is_named(
    write_plugin: WritePlugin, log_file: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MANY_TASKS", 20)
    with log_file.written():
        async with running(write_plugin) as ksi:
            await ksi.call_raw("probe:leak", {"tasks": 30})
            for _ in range(2):
                ksi.daemon.guard.look(asyncio.all_tasks())
            assert (await details(ksi))["figures"]["tasks"] >= 30
            assert (await details(ksi, "other"))["figures"]["tasks"] == 0
    assert [line["plugin"] for line in log_file.lines("plugin.leaks_tasks")] == ["probe"]


def test_a_daemon_that_has_no_descriptor_left_is_said_to_have_none() -> None:
    """What looks for that failed for want of one; the third time within a minute ended the daemon."""
    looking = guard.Guard(Catalog(), lambda _, __: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with capture_logs() as logged:
            looking.look(())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [(line["event"], line["limit"]) for line in logged] == [("daemon.files_low", free)]


async def test_a_daemon_that_grows_or_runs_out_of_files_says_so(
    write_plugin: WritePlugin, log_file: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with log_file.written():
        async with running(write_plugin) as ksi:
            ksi.daemon.guard.look(())
            monkeypatch.setattr(guard, "_memory", lambda: 10**12)
            monkeypatch.setattr("resource.getrlimit", lambda _: (10, 10))
            for _ in range(2):
                ksi.daemon.guard.look(())
            monkeypatch.undo()
    assert len(log_file.lines("daemon.grows")) == 2
    assert len(log_file.lines("daemon.files_low")) == 2


def test_the_looks_are_often_enough_to_name_in_half_a_second() -> None:
    assert watchdog.HELD_S + 3 * watchdog.TICK_S <= 0.5
