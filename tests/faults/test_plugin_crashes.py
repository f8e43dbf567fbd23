"""A plugin that ends the process: the daemon is back with that plugin off, and all is kept."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_common.errors import KSIError
from tests.support.daemon_process import DaemonProcess, Died
from tests.support.waiting import eventually

HEAD = """
import asyncio, ctypes, os, sys
from contextlib import asynccontextmanager
from ksi_daemon.plugin import (
    Message, Notification, Request, Service, Transaction, handler, hookimpl, layer, subscriber
)

FLAG = os.environ["KSI_HOME"] + "/crash"

def crash():
    if os.path.exists(FLAG):
        {end}

class Done(Message):
    pass

class Go(Request[Done], event="boom:go"):
    '''Go.'''

class Told(Notification, event="boom:told"):
    pass

@handler
{handler}
"""

PLAIN = "async def go(request: Go) -> Done:\n    return Done()\n"

UNIT = "def go(request: Go, tx: Transaction) -> Done:\n    {do}\n    return Done()\n"

CRASHES: Mapping[str, tuple[str, str]] = {
    "in a handler": ("async def go(request: Go) -> Done:\n    crash()\n    return Done()\n", ""),
    "after it waited": (
        "async def go(request: Go) -> Done:\n    await asyncio.sleep(0.01)\n    crash()\n    return Done()\n",
        "",
    ),
    "in a thread": ("def go(request: Go) -> Done:\n    crash()\n    return Done()\n", ""),
    "in a unit of work": (
        "def go(request: Go, tx: Transaction) -> Done:\n    crash()\n    return Done()\n",
        "",
    ),
    "in a subscriber": (
        UNIT.replace("{do}", "tx.tell(Told())"),
        "@subscriber\nasync def hear(told: Told) -> None:\n    crash()\n",
    ),
    "in a layer": (
        PLAIN,
        "@layer(namespaces=['boom'])\nasync def around(envelope, send, call_next):\n    crash()\n"
        "    await call_next(envelope, send)\n@hookimpl\ndef ksi_middleware():\n    return [around]\n",
    ),
    "in an observer": (
        PLAIN,
        "@hookimpl\ndef ksi_event_handled(envelope):\n    if envelope.event == 'boom:go':\n        crash()\n",
    ),
    "in ksi_handle_event": (
        PLAIN,
        "@hookimpl\nasync def ksi_handle_event(event):\n    if event == 'boom:other':\n        crash()\n",
    ),
}

STARTS: Mapping[str, str] = {
    "at import": "crash()\n",
    "in ksi_services": "@hookimpl\ndef ksi_services():\n    crash()\n    return []\n",
    "in a service": (
        "class Thing:\n    pass\n@asynccontextmanager\nasync def make():\n    crash()\n    yield Thing()\n"
        "@hookimpl\ndef ksi_services():\n    return [Service(Thing, make)]\n"
    ),
    "in ksi_startup": "@hookimpl\nasync def ksi_startup():\n    await asyncio.sleep(0)\n    crash()\n",
    "in ksi_serve": "@hookimpl\nasync def ksi_serve():\n    await asyncio.sleep(0)\n    crash()\n",
}

SEGFAULT = "ctypes.string_at(0)"
EXIT = "os._exit(1)"


@asynccontextmanager
async def supervised(end: str, handler: str, rest: str, *, armed: bool = False) -> AsyncIterator[Any]:
    process = DaemonProcess()
    process.add_plugin("boom", HEAD.replace("{end}", end).replace("{handler}", handler) + rest)
    flag = process.home / "crash"
    process.home.mkdir(mode=0o700, exist_ok=True)
    if armed:
        flag.touch()
    log = process.base / "output"
    with log.open("wb") as output:
        supervisor = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ksi_daemon.process_supervisor", str(process.home), "--",
            sys.executable, "-m", "ksi_daemon",
            env=process.environ, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        async with AsyncClient(process.socket, connect_timeout_s=90) as client:
            yield client, flag, process.home
    finally:
        supervisor.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await supervisor.wait()
        process._leave_nothing()


async def status(client: AsyncClient) -> tuple[str, str | None]:
    details = await client.call_raw("plugin:inspect", {"plugin_name": "boom"}, safe=True)
    return details["status"], details["error"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("end", [EXIT, SEGFAULT], ids=["exit", "segfault"])
@pytest.mark.parametrize("where", CRASHES)
async def test_a_plugin_that_ends_the_process_is_off_when_the_daemon_is_back(where: str, end: str) -> None:
    handler, rest = CRASHES[where]
    if end == SEGFAULT and where not in {"in a handler", "in a thread"}:
        pytest.skip("one kind of end is enough for each other place")
    async with supervised(end, handler, rest) as (client, flag, _):
        await client.call_raw("state:set", {"key": "kept", "value": 1})
        assert (await status(client))[0] == "loaded"
        flag.touch()
        event = "boom:other" if where == "in ksi_handle_event" else "boom:go"
        with suppress(KSIError):  # that it was lost, or that the plugin is off when it is sent again
            await client.call_raw(event, timeout_s=20)

        async def is_off() -> bool:
            return (await status(client))[0] == "quarantined"

        await eventually(is_off)
        assert (await status(client))[1] == "it was running when the process crashed"
        assert (await client.call_raw("state:get", {"key": "kept"}, safe=True))["value"] == 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("where", STARTS)
async def test_a_plugin_that_ends_the_process_at_its_start_is_off_at_the_next(where: str) -> None:
    async with supervised(EXIT, PLAIN, STARTS[where], armed=True) as (client, _, home):

        async def is_off() -> bool:
            return (await status(client))[0] == "quarantined"

        await eventually(is_off)
        assert (await client.call_raw("system:health", safe=True))["checks"]["plugins"][
            "status"
        ] == "degraded"
        state = json.loads((home / "run" / "supervisor.json").read_text())
    assert (state["suspects"], state["last_exit"]) == (["boom"], "exit code 1")


@pytest.mark.timeout(240)
async def test_a_daemon_that_is_killed_from_outside_makes_nobody_suspect() -> None:
    busy = "async def go(request: Go) -> Done:\n    import time\n    time.sleep(60)\n    return Done()\n"
    async with supervised(EXIT, busy, "") as (client, _, home):
        pid = (await client.call_raw("system:info", safe=True))["pid"]
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(_ask(client))

            async def at_work() -> bool:
                return b"boom" in (home / "run" / "breadcrumb").read_bytes()

            await eventually(at_work)
            os.kill(pid, signal.SIGKILL)
            asked.cancel()
        assert (await status(client))[0] == "loaded"


@pytest.mark.timeout(240)
async def test_ctrl_c_before_it_serves_ends_the_daemon_without_a_traceback() -> None:
    process = DaemonProcess()
    process.home.mkdir(mode=0o700)
    process.add_plugin("slow", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    try:
        with pytest.raises(Died):
            await process.start()
        assert await process.wait() == -signal.SIGINT
        assert process.stderr.read_text() == ""
        assert not (process.home / "run" / "ksi_daemon.pid").exists()
    finally:
        await process.__aexit__()


UNWATCHED = """async def go(request: Go) -> Done:
    import threading
    threading.Thread(target=threading.Event().wait).start()  # the process would wait for its end

    def leave() -> None:
        {end}

    asyncio.get_running_loop().call_soon(leave)
    return Done()
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("end", ["sys.exit(0)", "raise KeyboardInterrupt"])
async def test_a_plugin_that_leaves_the_loop_does_not_end_the_daemon_for_good(end: str) -> None:
    """Where nobody stands between a plugin and the loop, what it raises ends the loop."""
    async with supervised(EXIT, UNWATCHED.replace("{end}", end), "") as (client, _, home):
        before = (await client.call_raw("system:info", safe=True))["pid"]
        with suppress(KSIError):
            await client.call_raw("boom:go", timeout_s=20)
        async with asyncio.timeout(45):  # well before the watchdog would end one that hangs

            async def is_back() -> bool:
                return bool((await client.call_raw("system:info", safe=True))["pid"] != before)

            await eventually(is_back)
        state = json.loads((home / "run" / "supervisor.json").read_text())
    assert (state["restarts"], state["last_exit"]) == (1, "exit code 1")


async def _ask(client: AsyncClient) -> None:
    await client.call_raw("boom:go", safe=True)
