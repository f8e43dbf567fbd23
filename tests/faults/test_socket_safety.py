"""Only the owner gets in, and nobody who is in can hold up the others."""

import asyncio
import json
import os
import signal
import socket
import stat
import sys
from asyncio import TaskGroup, timeout
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final

import orjson
import pytest

from ksi_client import AsyncClient
from tests.support.daemon_process import DaemonProcess, Died
from tests.support.pipeline import call_line, connected, expect_reply, pipeline
from tests.support.scale import scaled
from tests.support.waiting import eventually

PATIENCE_S: Final = 40
NOBODY: Final = 65534
CONNECTIONS: Final = 1000
CALLS: Final = scaled(2, 10)
"""Of each connection."""
FEW_FILES: Final = ("sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh")
"""What many shells allow; the hard limit stays."""
HEALTH: Final = call_line("system:health")
PARTIAL_LINE_S: Final = 0.3

AS_NOBODY: Final = f"""
import contextlib, os, socket, sys
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    with contextlib.suppress(BrokenPipeError):  # refused already
        sock.sendall({HEALTH!r})
    while chunk := sock.recv(65536):
        sys.stdout.write(chunk.decode())
"""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


async def ask_as_nobody(daemon: DaemonProcess) -> tuple[str, str]:
    """Ask for the daemon's health as another user; give what that user reads, and what goes wrong."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", AS_NOBODY, daemon.socket, stdout=-1, stderr=-1
    )
    async with timeout(PATIENCE_S):
        stdout, stderr = await process.communicate()
    return stdout.decode(), stderr.decode()


def open_to_all(daemon: DaemonProcess) -> None:
    for folder in (daemon.base, daemon.home, daemon.socket.parent):
        folder.chmod(0o755)
    daemon.socket.chmod(0o666)


async def health(daemon: DaemonProcess) -> dict[str, Any]:
    answers: list[bytes] = []
    async with timeout(PATIENCE_S):
        await pipeline(daemon.socket, [HEALTH], answers.append)
    reply: dict[str, Any] = orjson.loads(answers[0])["data"]
    return reply


async def only_one_is_connected(daemon: DaemonProcess) -> bool:
    return bool((await health(daemon))["active_connections"] == 1)


@pytest.mark.root
@needs_root
async def test_another_user_is_refused_even_where_the_files_let_him_in() -> None:
    async with DaemonProcess() as daemon:
        open_to_all(daemon)
        said, _ = await ask_as_nobody(daemon)
        (frame,) = [json.loads(line) for line in said.splitlines()]
        assert frame["error"]["code"] == "PERMISSION_DENIED"
        assert (await health(daemon))["status"] == "healthy"


@pytest.mark.root
@needs_root
async def test_another_user_does_not_even_get_to_the_socket() -> None:
    async with DaemonProcess() as daemon:
        daemon.base.chmod(0o755)
        said, wrong = await ask_as_nobody(daemon)
        assert said == ""
        assert "PermissionError" in wrong


@pytest.mark.root
@needs_root
async def test_a_folder_of_another_user_is_refused() -> None:
    daemon = DaemonProcess()
    run = daemon.home / "run"
    run.mkdir(parents=True)
    os.chown(run, NOBODY, NOBODY)
    with pytest.raises(Died, match=f"exit code 1: .*belongs to uid {NOBODY}"):
        async with daemon:
            pass


async def test_a_folder_that_cannot_be_is_named_with_what_to_do() -> None:
    """As of an XDG_RUNTIME_DIR that is another user's, or of a session that is over."""
    with pytest.raises(Died, match=r"exit code 1: KSI cannot run: cannot use /proc/none: .*\n  set KSI_HOME"):
        async with DaemonProcess(environ={"KSI_SOCKET": "/proc/none/ksi.sock"}):
            pass


async def test_socket_and_database_are_the_owners_alone() -> None:
    async with DaemonProcess() as daemon:
        private = {daemon.socket: 0o600, daemon.socket.parent: 0o700}
        private |= {daemon.database: 0o600, daemon.database.parent: 0o700}
        assert {path: stat.S_IMODE(path.stat().st_mode) for path in private} == private


@pytest.mark.timeout(150)
async def test_1000_connections_at_once_are_served_where_256_files_are_allowed() -> None:
    answers: list[bytes] = []
    async with DaemonProcess(wrapper=FEW_FILES) as daemon, timeout(100):
        async with TaskGroup() as tasks:
            for _ in range(CONNECTIONS):
                tasks.create_task(pipeline(daemon.socket, [HEALTH] * CALLS, answers.append, window=1))
        await eventually(lambda: only_one_is_connected(daemon))
    assert len(answers) == CALLS * CONNECTIONS
    for answer in answers:
        expect_reply(answer)


async def test_a_line_that_does_not_end_is_cut_however_it_goes_on() -> None:
    async with (
        DaemonProcess(environ={"KSI_LIMITS__PARTIAL_LINE_S": "0.5"}) as daemon,
        timeout(PATIENCE_S),
        TaskGroup() as tasks,
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(os.fspath(daemon.socket))
            sock.setblocking(False)
            dribble = tasks.create_task(drip(daemon, sock))
            frame = json.loads(await read_to_the_end(sock))
            dribble.cancel()
    assert frame["id"] is None
    assert frame["error"]["code"] == "DEADLINE_EXCEEDED"
    assert frame["error"]["details"]["reason"] == "partial_line"


async def drip(daemon: DaemonProcess, sock: socket.socket) -> None:
    """Send a byte for each answer that another client gets."""
    with suppress(ConnectionError):
        while True:
            await asyncio.get_running_loop().sock_sendall(sock, b"x")
            await health(daemon)


async def read_to_the_end(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):  # what it was sent after it hung up
        while chunk := await asyncio.get_running_loop().sock_recv(sock, 65536):
            data += chunk
    return data


async def test_lines_that_end_in_time_are_not_cut_because_the_next_has_begun() -> None:
    async with (
        DaemonProcess(environ={"KSI_LIMITS__PARTIAL_LINE_S": str(PARTIAL_LINE_S)}) as daemon,
        timeout(PATIENCE_S),
    ):
        while not await answered_in_halves(daemon):
            pass


async def answered_in_halves(daemon: DaemonProcess) -> bool:
    """Send lines for longer than one may take, each with half of the next; False where one took too long."""
    half = len(HEALTH) // 2
    async with connected(daemon.socket) as (reader, writer):
        end = monotonic() + 3 * PARTIAL_LINE_S
        begun = monotonic()
        writer.write(HEALTH[:half])
        while begun < end:
            before, begun = begun, monotonic()
            writer.write(HEALTH[half:] + HEALTH[:half])
            answer = b""
            with suppress(ConnectionError):
                answer = await reader.readline()
            if b'"type":"reply"' not in answer:
                assert monotonic() - before >= PARTIAL_LINE_S, answer.decode()
                return False
    return True


async def test_a_line_that_came_in_time_is_read_though_the_daemon_stood_still() -> None:
    async with (
        DaemonProcess(environ={"KSI_LIMITS__PARTIAL_LINE_S": str(PARTIAL_LINE_S)}) as daemon,
        timeout(PATIENCE_S),
    ):
        while not await answered_after_a_stall(daemon):
            pass


async def answered_after_a_stall(daemon: DaemonProcess) -> bool:
    """Halt the daemon in the middle of a line, for longer than one may take; False where that came late."""
    half = len(HEALTH) // 2
    async with connected(daemon.socket) as (reader, writer):
        begun = monotonic()
        writer.write(HEALTH + HEALTH[:half])
        expect_reply(await reader.readline())
        os.kill(daemon.pid, signal.SIGSTOP)
        writer.write(HEALTH[half:])
        in_time = monotonic() - begun < PARTIAL_LINE_S
        await asyncio.sleep(2 * PARTIAL_LINE_S)
        os.kill(daemon.pid, signal.SIGCONT)
        if in_time:
            expect_reply(await reader.readline())
        return in_time


async def test_a_client_that_asks_and_never_reads_is_cut_and_costs_little() -> None:
    async with DaemonProcess(environ={"KSI_LIMITS__UNWRITABLE_S": "0.3"}) as daemon:
        await health(daemon)
        before = daemon.rss
        await asyncio.to_thread(ask_until_cut, daemon.socket)
        assert daemon.rss - before < 15_000_000
        await eventually(lambda: only_one_is_connected(daemon))


async def test_clients_that_ask_for_much_and_never_read_cost_what_a_few_answers_cost() -> None:
    value = "x" * 1_000_000
    async with (
        DaemonProcess(environ={"KSI_LIMITS__UNWRITABLE_S": "600"}) as daemon,
        AsyncExitStack() as clients,
    ):
        async with AsyncClient(daemon.socket) as client:
            await client.call_raw("state:set", {"key": "large", "value": value})
        before = daemon.rss
        writers = []
        for _ in range(8):
            reader, writer = await asyncio.open_unix_connection(daemon.socket, limit=2**22)
            clients.callback(writer.close)
            writers.append((reader, writer))
            writer.write(b'{"event":"state:get","data":{"key":"large"}}\n' * 128)
            await writer.drain()
        await health(daemon)
        assert daemon.rss - before < 8 * 12_000_000
        # Who reads at last gets every answer, in the order asked.
        reader, writer = writers[0]
        writer.write(b'{"event":"system:health","data":{},"id":"last"}\n')
        for _ in range(128):
            assert orjson.loads(await reader.readline())["data"]["value"] == value
        assert orjson.loads(await reader.readline())["id"] == "last"


def ask_until_cut(path: Path) -> None:
    """Send requests and read nothing; TimeoutError where the daemon lets that go on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(os.fspath(path))
        with suppress(ConnectionError):
            while True:
                sock.sendall(HEALTH * 100)
