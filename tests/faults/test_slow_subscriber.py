"""Who does not read costs the daemon no memory and nobody any time, and misses nothing."""

import asyncio
import select
import signal
import socket
import sys
from asyncio import TaskGroup, timeout
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import orjson
import pytest

from tests.faults.twins import faulty
from tests.support.daemon_process import DaemonProcess
from tests.support.follower import Counting, Follower
from tests.support.pipeline import call_line, publish_many
from tests.support.scale import scaled

EVENTS: Final = scaled(20_000, 200_000)
STEPS: Final = 20
"""How often the memory is looked at while they are published."""
MOST_GROWTH: Final = 15_000_000
MOST_GROWTH_OF_MANY: Final = 60_000_000
PATIENCE_S: Final = 60
FOLLOWER: Final = Path(__file__).parents[1] / "support" / "follower.py"


@asynccontextmanager
async def follower_process(daemon: DaemonProcess, last: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a subscriber that can be stopped; it has caught up."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, FOLLOWER, daemon.socket, "demo:*", str(last), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert await next_line(process) == "caught up"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def next_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with timeout(60):
        return (await process.stdout.readline()).decode().strip()


async def publish_and_watch(daemon: DaemonProcess, start: int, end: int) -> int:
    """Publish events that count from ``start``; give the most memory that the daemon had."""
    most, step = 0, EVENTS // STEPS
    for begin in range(start, end, step):
        await publish_many(daemon.socket, "demo:told", step, start=begin)
        most = max(most, daemon.rss)
    return most


async def growth_with_a_stopped_subscriber(daemon: DaemonProcess) -> int:
    """Stop one subscriber of two; give by how much the daemon grew. Neither may miss anything."""
    counting = Counting(2 * EVENTS - 1)
    async with follower_process(daemon, 2 * EVENTS - 1) as stopped, TaskGroup() as tasks:
        other = Follower(daemon.socket, ["demo:*"], counting)
        following = tasks.create_task(other.follow(daemon.serving.wait))
        await other.caught_up.wait()
        before = await publish_and_watch(daemon, 0, EVENTS // 2)
        stopped.send_signal(signal.SIGSTOP)
        grown = await publish_and_watch(daemon, EVENTS // 2, 2 * EVENTS) - before
        async with timeout(PATIENCE_S):
            await counting.finished.wait()
        following.cancel()
        stopped.send_signal(signal.SIGCONT)
        assert (await next_line(stopped)).startswith("finished gaps=0 ")
        assert await stopped.wait() == 0
    assert (other.connections, other.gaps) == (1, 0)
    return grown


@pytest.mark.slow
@pytest.mark.timeout(180 + EVENTS // 500)
async def test_a_stopped_subscriber_costs_no_memory_and_goes_on_where_it_was() -> None:
    async with DaemonProcess() as daemon:
        assert await growth_with_a_stopped_subscriber(daemon) < MOST_GROWTH


@pytest.mark.slow
@pytest.mark.timeout(180 + EVENTS // 500)
async def test_a_daemon_that_keeps_what_is_not_read_is_found_out() -> None:
    async with faulty("never_full") as daemon:
        assert await growth_with_a_stopped_subscriber(daemon) > MOST_GROWTH


@pytest.mark.timeout(240)
async def test_a_subscriber_that_is_cut_resumes_from_its_cursor() -> None:
    number = 4000
    counting = Counting(number - 1)
    async with DaemonProcess(environ={"KSI_LIMITS__UNWRITABLE_S": "0.2"}) as daemon:
        with subscribed(daemon) as unread:
            await publish_many(daemon.socket, "demo:told", number)
            await asyncio.to_thread(wait_hung_up, unread)
            cursor = read_what_is_left(unread, counting)
        assert 0 < (counting.next or 0) < number
        follower = Follower(daemon.socket, ["demo:*"], counting, start={"cursor": cursor})
        async with TaskGroup() as tasks:
            following = tasks.create_task(follower.follow(daemon.serving.wait))
            async with timeout(PATIENCE_S):
                await counting.finished.wait()
            following.cancel()


@pytest.mark.timeout(240)
async def test_many_subscriptions_of_one_client_that_does_not_read_cost_little() -> None:
    async with DaemonProcess() as daemon:
        await publish_many(daemon.socket, "demo:told", 5000)
        before = most = daemon.rss
        with subscribed(daemon, 1000):
            for _ in range(30):
                await publish_many(daemon.socket, "demo:told", 100)
                most = max(most, daemon.rss)
    assert most - before < MOST_GROWTH_OF_MANY


def subscribed(daemon: DaemonProcess, number: int = 1) -> socket.socket:
    """Subscribe, and read nothing."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(daemon.socket))
    sock.sendall(call_line("event:subscribe", {"patterns": ["demo:*"], "start": "beginning"}) * number)
    return sock


def wait_hung_up(sock: socket.socket) -> None:
    """Wait until the daemon has closed the connection, whatever is left to read."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    assert poll.poll(PATIENCE_S * 1000), "the daemon keeps the connection"


def read_what_is_left(sock: socket.socket, counting: Counting) -> str:
    """Count the items that came whole; give the cursor of the last."""
    cursor = ""
    with sock.makefile("rb") as lines:
        for line in lines:
            if line.endswith(b"\n") and (frame := orjson.loads(line))["type"] == "item":
                counting(frame["data"])
                cursor = frame["cursor"]
    return cursor
