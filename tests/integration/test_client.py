"""The clients against the real daemon, in a process of its own that is killed and restarted."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, Client, call_raw
from ksi_common.bus import Delivered
from ksi_common.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from ksi_common.events import event, state, system
from ksi_common.frames import Mark
from ksi_common.messages import Notification
from ksi_daemon.testing import RunningDaemon
from tests.unit.test_client_fake import Conformance, Wire, open_wire, socket_folder

PATIENCE_S = 60.0
"""A net for a loaded machine: the daemon is started again and again."""
pytestmark = pytest.mark.timeout(240)


class Told(Notification, event="demo:told"):
    n: int


class RealDaemon:
    """`python -m ksi_daemon` with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket = home / "run" / "daemon.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; clients wait for its socket by themselves."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ksi_daemon"],
            env={**environ, "KSI_HOME": str(self.home)},
            stdout=subprocess.DEVNULL,
        )

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and wait for its end."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(PATIENCE_S)

    def restart(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and start it again."""
        self.stop(number)
        self.start()


@contextmanager
def real_daemon() -> Iterator[RealDaemon]:
    """Run a daemon that answers, and end it whatever happens."""
    with socket_folder() as folder:
        daemon = RealDaemon(folder / "var")
        daemon.start()
        try:
            call_raw("system:health", socket=daemon.socket, connect_timeout_s=PATIENCE_S)
            yield daemon
        finally:
            daemon.stop()


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    with real_daemon() as daemon:
        yield daemon


@pytest.fixture
async def client(daemon: RealDaemon) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(daemon.socket, connect_timeout_s=PATIENCE_S) as client:
        yield client


class TestTheRealDaemon(Conformance):
    """The real daemon does what the fake does, and what the client relies on."""

    @pytest.fixture
    async def wire(self, daemon: RealDaemon) -> AsyncIterator[Wire]:
        wire = await open_wire(daemon.socket)
        yield wire
        await wire.aclose()


async def test_every_kind_of_call_is_answered(client: AsyncClient) -> None:
    assert (await client.call(system.Health())).status == "healthy"
    await client.call(state.Set(key="a", value={"b": [1, None, "ü"]}))
    assert (await client.call(state.Get(key="a"))).value == {"b": [1, None, "ü"]}
    assert (await client.call_raw("state:get", {"key": "a"}))["found"]
    with pytest.raises(InvalidArgument, match='no field "ky"'):
        await client.call_raw("state:get", {"ky": "a"})
    with pytest.raises(NotFound) as caught:
        await client.call_raw("state:gett", {})
    assert caught.value.details["nearest"][0] == "state:get"


async def test_a_client_cannot_tell_what_a_plugin_declares(client: AsyncClient) -> None:
    with pytest.raises(PermissionDenied):
        await client.notify(state.Changed(namespace="n", key="k", value=1))


async def test_a_thousand_calls_at_once_are_all_answered(client: AsyncClient) -> None:
    async with asyncio.TaskGroup() as tasks:
        for n in range(1000):
            tasks.create_task(client.call(state.Set(key=f"k{n}", value=n)))
    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(client.call(state.Get(key=f"k{n}"))) for n in range(1000)]
    assert [call.result().value for call in found] == list(range(1000))


async def test_what_a_client_tells_is_followed_by_itself_and_others(
    client: AsyncClient, daemon: RealDaemon
) -> None:
    async with asyncio.timeout(PATIENCE_S), AsyncClient(daemon.socket) as other:
        mine, theirs = client.subscribe("demo:*"), other.subscribe("demo:*", marks=True)
        mark = await anext(theirs)
        assert isinstance(mark, Mark)
        await client.notify(Told(n=1))
        told = await anext(mine)
        assert (told.event, told.data) == ("demo:told", {"n": 1})
        assert await anext(theirs) == told


async def test_a_typed_stream_gives_its_items(client: AsyncClient) -> None:
    await client.notify(Told(n=1))
    async with client.stream(event.Subscribe(patterns=["demo:*"], start="beginning")) as items:
        item = await anext(items)
    assert (item.event, item.data) == ("demo:told", {"n": 1})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_subscription_outlives_restarts_without_gap_or_duplicate(
    daemon: RealDaemon, number: signal.Signals
) -> None:
    rounds, each = 3, 40
    seen: list[int] = []

    async def follow(client: AsyncClient) -> None:
        async for told in client.subscribe("demo:*", start="beginning"):
            assert isinstance(told.data["n"], int)
            seen.append(told.data["n"])
            if len(seen) == (rounds + 1) * each:
                return

    async with (
        asyncio.timeout((rounds + 1) * PATIENCE_S),
        AsyncClient(daemon.socket, connect_timeout_s=PATIENCE_S) as reader,
        AsyncClient(daemon.socket, connect_timeout_s=PATIENCE_S) as writer,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(follow(reader))
        for round_ in range(rounds):
            telling = tasks.create_task(tell(writer, range(round_ * each, (round_ + 1) * each)))
            await asyncio.to_thread(daemon.restart, number)
            await telling
        await tell(writer, range(rounds * each, (rounds + 1) * each))
    assert seen == list(range((rounds + 1) * each))
    assert reader.statistics().connections > 1


async def tell(client: AsyncClient, numbers: range) -> None:
    """Tell each number once. A daemon that is stopping refuses; one that was killed loses nothing."""
    for n in numbers:
        while True:
            try:
                await client.notify(Told(n=n))
                break
            except Unavailable as error:
                if error.details["reason"] != "shutting_down":
                    raise


async def test_a_subscription_that_is_not_read_catches_up_later(client: AsyncClient) -> None:
    total = 12_000
    events = client.subscribe("demo:*")
    batch = [event.NewEvent(event="demo:told", data={"n": n}) for n in range(1000)]
    for _ in range(total // 1000):
        await client.call(event.Append(stream="demo/1", events=batch))
    assert (await client.call(system.Health())).status == "healthy"
    async with asyncio.timeout(PATIENCE_S):
        versions = [(await anext(events)).version for _ in range(total)]
    assert versions == list(range(1, total + 1))


def test_the_blocking_client_does_the_same(daemon: RealDaemon) -> None:
    with Client(daemon.socket, connect_timeout_s=PATIENCE_S) as client:
        client.call(state.Set(key="a", value=1))
        events = client.subscribe("demo:*", marks=True)
        client.notify(Told(n=1))
        daemon.restart()
        client.notify(Told(n=2))
        seen: list[Any] = []
        while len(seen) < 2:
            entry = next(events)
            if isinstance(entry, Delivered):
                seen.append(entry.data["n"])
        assert seen == [1, 2]
        assert client.call(state.Get(key="a")).value == 1


FORKING = """
import os, sys
from ksi_client import Client
from ksi_common.events import event

def append(ksi, who):
    told = [event.NewEvent(event="demo:told", data={"who": who})]
    return ksi.call(event.Append(stream="fork/1", events=told)).version

with Client(sys.argv[1]) as ksi:
    followed = ksi.subscribe("demo:*")
    append(ksi, "parent")
    assert next(followed).data == {"who": "parent"}
    pid = os.fork()
    if pid == 0:
        followed.close()  # in this process: the parent follows on
        append(ksi, "child")
        append(ksi, "same")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    append(ksi, "same")
    print([next(followed).data["who"] for _ in range(3)])
"""


async def test_a_forked_process_has_a_connection_and_keys_of_its_own(ksi: RunningDaemon) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORKING, str(ksi.paths.socket), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    assert (process.returncode, out.decode().strip()) == (0, "['child', 'same', 'same']")


async def test_a_client_that_is_open_is_not_opened_again(ksi: RunningDaemon) -> None:
    async with AsyncClient(ksi.paths.socket) as client:
        with pytest.raises(FailedPrecondition, match="this client is open already"):
            async with client:
                pass
        assert await client.call_raw("system:health", safe=True)
    async with client:
        assert await client.call_raw("system:health", safe=True)
