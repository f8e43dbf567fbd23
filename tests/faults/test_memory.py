"""Memory does not grow with uptime."""

from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Final

import pytest

from tests.support.daemon_process import DaemonProcess
from tests.support.pipeline import call_line, expect_reply, pipeline
from tests.support.scale import scaled

REQUESTS: Final = scaled(60_000, 1_000_000)
MOST_GROWTH: Final = 1_000_000
MOST_IDLE: Final = 60_000_000

LEAK: Final = """
from ksi_daemon.plugin import hookimpl

kept = []

@hookimpl
def ksi_event_handled(envelope, took_s, code):
    kept.append(envelope)
"""


def everyday() -> Iterator[bytes]:
    """Give requests of every kind, without end."""
    value = {"namespace": "load", "key": "k", "value": {"text": "x" * 100}}
    asked: Iterable[bytes] = (
        call_line("system:health"),
        call_line("state:set", value),
        call_line("state:get", {"namespace": "load", "key": "k"}),
        call_line("event:publish", {"event": "demo:told", "data": {"text": "x" * 100}}),
        call_line("event:publish", {"event": "demo:seen", "data": {"n": 1}, "ephemeral": True}),
        call_line("event:publish", {"event": "demo:told", "stream": "demo/1"}),
    )
    return cycle(asked)


async def growth(daemon: DaemonProcess, requests: int) -> int:
    """Ask; give by how many bytes the second half of it made the daemon grow."""
    sizes = []
    for _ in range(2):
        await pipeline(daemon.socket, islice(everyday(), requests // 2), expect_reply)
        sizes.append(daemon.rss)
    return sizes[1] - sizes[0]


@pytest.mark.slow
@pytest.mark.timeout(240 + REQUESTS // 1000)
async def test_the_second_half_of_many_requests_takes_no_memory() -> None:
    async with DaemonProcess() as daemon:
        assert await growth(daemon, REQUESTS) < MOST_GROWTH


@pytest.mark.timeout(240)
async def test_a_daemon_that_keeps_its_requests_is_found_out() -> None:
    daemon = DaemonProcess()
    daemon.add_plugin("leak", LEAK)
    async with daemon:
        assert await growth(daemon, 20_000) > MOST_GROWTH


async def test_an_idle_daemon_is_small() -> None:
    async with DaemonProcess() as daemon:
        assert daemon.rss < MOST_IDLE
