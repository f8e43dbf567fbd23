"""Whatever is done to state, graph and queues, and whenever the daemon is killed: the log makes it again."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_common.messages import Request, spec_of
from tests.support.daemon_process import DaemonProcess
from tests.support.histories import requests
from tests.support.pipeline import call_line, connected, pipeline
from tests.support.scale import scaled

PLUGINS = "state,graph,queues,events"
rounds = st.lists(
    st.tuples(st.lists(requests, min_size=1, max_size=25), st.integers(0, 25)), min_size=1, max_size=3
)
"""Requests that are sent at once, and after how many answers the daemon is killed."""


async def lived(daemon: DaemonProcess, asked: Sequence[Request[Any]], answers: int) -> None:
    """Send all, and kill the daemon when it has answered some; start it again."""
    left = [answers]

    def heard(_: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            daemon.kill_now()

    lines = (call_line(spec_of(type(each)).name, each.model_dump(by_alias=True)) for each in asked)
    if not answers:
        daemon.kill_now()
    with suppress(ConnectionError, FileNotFoundError):
        await pipeline(daemon.socket, lines, heard)
    if left[0] <= 0:
        await daemon.wait()
        await daemon.start()


async def replayed(daemon: DaemonProcess) -> Mapping[str, Any]:
    async with connected(daemon.socket) as (reader, writer):
        writer.write(call_line("event:replay", {}, "r"))
        while True:
            item: dict[str, Any] = orjson.loads(await reader.readline())
            assert item["type"] == "item", item
            if item["data"]["done"]:
                last: Mapping[str, Any] = item["data"]
                return last


async def differences(history: Sequence[tuple[Sequence[Request[Any]], int]]) -> Sequence[str]:
    async with DaemonProcess(environ={"KSI_LOAD_PLUGINS": PLUGINS}) as daemon:
        for asked, answers in history:
            await lived(daemon, asked, answers)
        tables = (await replayed(daemon))["tables"]
        assert len(tables) == 6
        return [table["difference"] for table in tables if table["difference"]]


@pytest.mark.timeout(scaled(240, 1800))
@settings(max_examples=scaled(5, 100), suppress_health_check=list(HealthCheck), deadline=None)
@given(history=rounds)
def test_the_log_of_a_killed_daemon_replayed_is_what_is_live(
    history: Sequence[tuple[Sequence[Request[Any]], int]],
) -> None:
    assert asyncio.run(differences(history)) == []


async def test_a_replay_that_is_killed_leaves_no_sandbox() -> None:
    """The sandbox ends with the daemon, and its folder is gone when that serves again."""
    async with DaemonProcess(environ={"KSI_LOAD_PLUGINS": PLUGINS}) as daemon:
        async with connected(daemon.socket) as (reader, writer):
            writer.write(call_line("event:replay", {"keep": True}, "r"))
            while not (item := orjson.loads(await reader.readline()))["data"]["done"]:
                pass
            async with connected(item["data"]["socket"]):
                daemon.kill_now()
                await daemon.wait()
        await daemon.start()
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            await asyncio.open_unix_connection(item["data"]["socket"])
        assert not list((daemon.home / "run" / "sandboxes").glob("*"))
        assert await daemon.stop() == 0
