"""Whatever dies, and however a child forks: nothing that it started stays."""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ksi_common.errors import Unavailable
from ksi_daemon import runner
from ksi_daemon.processes import Exit, Process, Processes
from ksi_daemon.runner_marks import read_mark
from tests.children import ENV, PYTHON, marks, on_both_loops, open_fds
from tests.support.waiting import eventually

NOBODY = 2**22
"""A pid that no process can have."""

FORKING = r"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 60  # a test that is killed leaves nothing for ever
here, there = os.pipe()
os.set_inheritable(there, True)
def linger():
    os.write(there, b".")
    os.closerange(0, 3)
    while time.monotonic() < end: time.sleep(1)
    os._exit(0)
def child(*steps):
    if os.fork() == 0:
        for step in steps: step()
        linger()
def orphaned():
    if os.fork(): os._exit(0)
def stopped():
    os.write(there, b".")
    os.kill(os.getpid(), signal.SIGSTOP)
def emptied():
    words = ["sh", "-c", f"echo >&{there}; sleep 60; exit", sys.argv[-1]]
    os.execve("/bin/sh", words, {})
child()
child(os.setsid)
child(orphaned)
child(os.setsid, orphaned)
child(os.setsid, orphaned, orphaned, os.setsid)
child(os.setsid, orphaned, emptied)
child(stopped)
for _ in range(7): os.read(here, 1)
os.write(1, b"ready\n")
while time.monotonic() < end:
    child(os.setsid, orphaned)
    os.waitpid(-1, os.WNOHANG)
    time.sleep(0.01)
"""
"""Ignores SIGTERM and keeps forking, in every way that escapes a group or a session."""

HOPPING = r"""
import os, signal, time
end = time.monotonic() + 60
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"ready\n")
while time.monotonic() < end:
    if os.fork(): os._exit(0)
    os.setsid()
"""
"""Lives for a millisecond, and leaves another of its kind."""

DAEMON = """
import asyncio, sys
from pathlib import Path
from ksi_daemon.processes import Processes
async def main():
    async with Processes(Path(sys.argv[1])) as processes:
        child = await processes.start(sys.argv[2:], env={"PATH": "/usr/bin:/bin"})
        await child.stdout.readline()
        print("ready", flush=True)
        await child.wait()
asyncio.run(main())
"""


BELOW = r"""
import asyncio, json, os, subprocess, sys
from pathlib import Path
from ksi_daemon import runner
from ksi_daemon.processes import Processes
folder = Path(sys.argv[1]) / "children"
folder.mkdir()
pid, started = os.getpid(), runner.read_stat(os.getpid()).started
mark = {"pid": pid, "pid_started": started, "runner": pid, "runner_started": started}
mark |= {"boot_id": runner.boot_id(), "cookie": None, "purpose": "old"}
(folder / str(pid)).write_text(json.dumps(mark))
async def main():
    sibling = subprocess.Popen(["sleep", "600"])
    async with Processes(Path(sys.argv[1])) as processes:
        assert sibling.wait() == -9
        os.write(1, b"alive %d\n" % len(processes.reaped))
asyncio.run(main())
"""
"""A daemon that an old mark names as a child: so it is when a child restarts the daemon."""


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ksi") as folder:
        yield Path(folder)


@pytest.fixture
def marker() -> str:
    return f"marker-{uuid4().hex}"


def scan(marker: str) -> set[int]:
    """Find the living processes with the marker among their arguments."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if marker.encode() in words:
            found.add(int(path.parent.name))
    return found


def runner_of(run_dir: Path) -> int:
    (mark,) = marks(run_dir)
    return int(mark["runner"])


@asynccontextmanager
async def forking(run_dir: Path, script: str, marker: str) -> AsyncIterator[tuple[Processes, Process]]:
    """Start a script that has its marker as an argument, and wait for its first line."""
    async with Processes(run_dir) as processes:
        process = await processes.start([*PYTHON, script, marker], env=ENV)
        assert await process.stdout.readline() == b"ready\n"
        yield processes, process


@contextmanager
def daemon(run_dir: Path, marker: str, *before: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process with the service in it, and below that the script that forks."""
    argv = [*before, sys.executable, "-c", DAEMON, str(run_dir), *PYTHON, FORKING, marker]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert b"ready\n" in process.stdout
            yield process
        finally:
            process.kill()


def wait_exit(pidfd: int) -> None:
    """Wait until a process that is no child of ours has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(50_000), "it still runs"
    os.close(pidfd)


async def test_stop_leaves_nothing_of_a_child_that_ignores_sigterm_and_keeps_forking(
    run_dir: Path, marker: str
) -> None:
    async with forking(run_dir, FORKING, marker) as (_, process):

        async def has_forked() -> bool:  # the twin: the scan finds what is planted, and what came after it
            return len(scan(marker)) > 10

        await eventually(has_forked)
        stopped = await process.stop(grace_s=0.3)
        assert scan(marker) == set()
    assert stopped.exit == Exit(signal=9)
    assert len(stopped.pids_gone) > 10


async def test_stop_catches_a_child_that_forks_away_all_the_time(run_dir: Path, marker: str) -> None:
    async with forking(run_dir, HOPPING, marker) as (_, process):
        await process.stop(grace_s=0.1)
        assert scan(marker) == set()


@pytest.mark.parametrize(
    "before", [(), ("bash", "-c", 'ulimit -x 1000; exec "$@"', "bash")], ids=["", "no cookie"]
)
def test_nothing_outlives_a_daemon_that_is_killed(
    run_dir: Path, marker: str, before: tuple[str, ...]
) -> None:
    with daemon(run_dir, marker, *before) as process:
        runner_end = os.pidfd_open(runner_of(run_dir))
        assert len(scan(marker)) >= 9, "the twin: the scan finds what is planted, and the daemon"
        process.kill()
        wait_exit(runner_end)
        assert scan(marker) == set()
        assert marks(run_dir) == []


async def test_a_daemon_kills_at_once_what_a_killed_runner_leaves(run_dir: Path, marker: str) -> None:
    async with forking(run_dir, FORKING, marker) as (processes, process):
        os.kill(runner_of(run_dir), signal.SIGKILL)
        assert await process.wait() == Exit(code=None, signal=None)
        assert scan(marker) == set()
        assert process.pid in (await process.stop()).pids_gone
        assert marks(run_dir) == []
        assert processes.statistics().reaped == 1


async def test_what_a_killed_daemon_and_its_killed_runner_leave_is_reaped_at_the_next_start(
    run_dir: Path, marker: str
) -> None:
    with daemon(run_dir, marker) as process:
        process.send_signal(signal.SIGSTOP)  # or it would kill at once what the runner leaves
        (mark,) = marks(run_dir)
        child_end = os.pidfd_open(mark["pid"])
        os.kill(mark["runner"], signal.SIGKILL)
        process.kill()
        process.wait()
        wait_exit(child_end)
    assert len(scan(marker)) >= 7, "the twin: the orphans are there, and only the mark knows whose they are"
    async with Processes(run_dir) as processes:
        assert scan(marker) == set()
        (reaped,) = processes.reaped
        assert len(reaped.pids_gone) >= 7
        assert reaped.pids_left == ()
        assert processes.statistics().reaped == 1
    assert marks(run_dir) == []


async def test_a_start_does_not_wait_for_the_runner_of_a_daemon_just_killed(
    run_dir: Path, marker: str
) -> None:
    with daemon(run_dir, marker) as process:
        runner_end = os.pidfd_open(runner_of(run_dir))
        process.kill()
        process.wait()
        async with Processes(run_dir):
            assert scan(marker) == set()
            wait_exit(runner_end)
    assert marks(run_dir) == []


async def test_a_runner_told_to_end_by_a_signal_ends_its_child_first(run_dir: Path) -> None:
    async with Processes(run_dir) as processes, await processes.start(["cat"], env=ENV) as process:
        os.kill(runner_of(run_dir), signal.SIGTERM)
        assert await process.wait() == Exit(signal=signal.SIGTERM)


@pytest.mark.slow
async def test_stop_does_without_a_runner_that_does_not_answer(run_dir: Path, marker: str) -> None:
    async with forking(run_dir, FORKING, marker) as (_, process):
        os.kill(runner_of(run_dir), signal.SIGSTOP)
        stopped = await process.stop(grace_s=0.1)
        assert scan(marker) == set()
        assert process.pid in stopped.pids_gone


async def test_a_daemon_below_a_child_ends_with_it_and_all_of_its_own(run_dir: Path, marker: str) -> None:
    inner = run_dir / "inner"
    argv = [sys.executable, "-c", DAEMON, str(inner), *PYTHON, FORKING, marker]
    async with Processes(run_dir) as processes, await processes.start(argv, env=ENV) as process:
        while await process.stdout.readline() != b"ready\n":
            pass
        assert marks(inner)[0]["cookie"] < marks(run_dir)[0]["cookie"]
        await process.stop(grace_s=0.3)
        assert scan(marker) == set()


@contextmanager
def planted(run_dir: Path, **changes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that no runner knows, and write a mark of it, true but for ``changes``."""
    with subprocess.Popen(["sleep", "600"]) as process:
        stat = runner.read_stat(process.pid)
        assert stat is not None
        mark: dict[str, Any] = {"boot_id": runner.boot_id(), "cookie": None, "purpose": "planted"}
        mark |= {"pid": process.pid, "pid_started": stat.started, "runner": NOBODY, "runner_started": -1}
        (run_dir / "children").mkdir()
        (run_dir / "children" / str(process.pid)).write_text(json.dumps(mark | changes))
        try:
            yield process
        finally:
            process.kill()


async def test_a_marked_process_is_killed_at_the_next_start(run_dir: Path) -> None:
    with planted(run_dir) as process:
        async with Processes(run_dir) as processes:
            assert [reaped.pids_gone for reaped in processes.reaped] == [(process.pid,)]
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "change", [{"pid_started": 1}, {"boot_id": "another"}, {"cookie": 4711, "pid": 2**22 + 1}]
)
async def test_a_process_that_only_has_the_pid_of_a_mark_is_left_alone(
    run_dir: Path, change: dict[str, Any]
) -> None:
    with planted(run_dir, **change) as process:
        async with Processes(run_dir) as processes:
            assert processes.reaped == ()
        assert process.poll() is None
    assert marks(run_dir) == []


@pytest.mark.parametrize(
    "damage", [{"pid": 1}, {"runner": 1}, {"pid": 0}, {"cookie": -1}, {"cookie": 7}, {"x": 1}]
)
def test_a_mark_that_would_reach_beyond_children_is_none(tmp_path: Path, damage: dict[str, Any]) -> None:
    true: dict[str, Any] = {"boot_id": "x", "purpose": "x", "cookie": 2**50}
    true |= {"pid": NOBODY, "pid_started": 1, "runner": NOBODY, "runner_started": 1}
    (tmp_path / "true").write_text(json.dumps(true))
    (tmp_path / "damaged").write_text(json.dumps(true | damage))
    assert read_mark(tmp_path / "true") is not None
    assert read_mark(tmp_path / "damaged") is None


async def test_a_mark_that_was_never_finished_is_removed(run_dir: Path) -> None:
    (run_dir / "children").mkdir()
    for name, text in (("7", ""), ("8.tmp", '{"pid": 8'), ("9", "[]"), ("10", '{"pid": 10}')):
        (run_dir / "children" / name).write_text(text)
    async with Processes(run_dir) as processes:
        assert processes.reaped == ()
    assert list((run_dir / "children").iterdir()) == []


def test_a_daemon_started_below_a_marked_child_does_not_kill_itself(run_dir: Path) -> None:
    assert subprocess.check_output([sys.executable, "-c", BELOW, str(run_dir)]).endswith(b"alive 1\n")


@on_both_loops
async def test_a_start_without_descriptors_left_is_refused_and_leaves_none_open(run_dir: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = 0
    async with Processes(run_dir) as processes:
        await (await processes.start(["true"], env=ENV)).wait()
        # The limit is on the number of a descriptor: fill up what is free below.
        held = [os.dup(0) for _ in range(64)]
        before = open_fds()
        for room in range(1, 20):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + room, limits[1]))
            try:
                await (await processes.start(["true"], env=ENV)).wait()
            except Unavailable:
                refused += 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert open_fds() == before
        for fd in held:
            os.close(fd)
    assert 5 < refused < 19
    assert marks(run_dir) == []
