"""What does not leave the daemon: no port is open, and what is sent to it is not in its log."""

import json

import psutil
import pytest

from ksi_client import AsyncClient
from ksi_common.errors import InvalidArgument, KSIError
from tests.support.daemon_process import DaemonProcess

SECRET = "nobody-reads-this-d41d8cd9"

BUGGY = """
from ksi_daemon.plugin import Message, Request, handler

class Done(Message):
    pass

class Fail(Request[Done], event="buggy:fail"):
    '''Fail.'''
    word: str

@handler
async def fail(request: Fail) -> Done:
    raise RuntimeError("here")
"""


async def test_no_port_is_open() -> None:
    async with DaemonProcess() as daemon, AsyncClient(daemon.socket) as ksi:
        await ksi.call_raw("system:health")
        assert psutil.Process(daemon.pid).net_connections(kind="inet") == []


async def test_what_is_sent_is_not_in_the_log() -> None:
    daemon = DaemonProcess(environ={"KSI_LOG__REQUESTS": "true"})
    daemon.add_plugin("buggy", BUGGY)
    async with daemon:
        async with AsyncClient(daemon.socket) as ksi:
            await ksi.call_raw("state:set", {"key": SECRET, "value": {"deep": [SECRET]}})
            await ksi.call_raw("event:publish", {"event": "demo:told", "data": {"word": SECRET}})
            with pytest.raises(InvalidArgument):
                await ksi.call_raw("state:get", {"key": {"no text": SECRET}})
            with pytest.raises(KSIError):
                await ksi.call_raw("buggy:fail", {"word": SECRET})
        assert await daemon.stop() == 0
        text = (daemon.home / "logs" / "daemon" / "ksi.jsonl").read_text()
    handled = [json.loads(line) for line in text.splitlines()]
    assert (
        len([line for line in handled if "state:set" in line.values()]) == 1
    )  # it is logged, without its data
    assert "Traceback" in text
    assert SECRET not in text
