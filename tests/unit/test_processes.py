"""Children under runners: what they are given, what they give back, and that they end."""

import asyncio
import os
import resource
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ksi_common.errors import (
    InvalidArgument,
    KSIError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from ksi_daemon import runner
from ksi_daemon.child_watchers import Child, watch
from ksi_daemon.processes import Exit, Limits, Process, Processes, ProcessesStatistics
from tests.children import ENV, PYTHON, marks, on_both_loops, open_fds


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ksi") as folder:
        yield Path(folder)


@asynccontextmanager
async def started(run_dir: Path, *argv: str, **options: Any) -> AsyncIterator[Process]:
    async with (
        Processes(run_dir) as processes,
        await processes.start(argv, **{"env": ENV, **options}) as process,
    ):
        yield process


async def output_of(run_dir: Path, *argv: str, **options: Any) -> bytes:
    async with started(run_dir, *argv, **options) as process:
        output = await process.stdout.read()
        assert await process.wait() == Exit(code=0), await process.stderr.read()
        return output


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def shown(pid: int) -> bytes:
    """What anybody sees of a process in ps, and its owner in /proc."""
    return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


@on_both_loops
async def test_a_child_gives_its_output_and_its_exit_code(run_dir: Path) -> None:
    async with started(run_dir, "sh", "-c", "echo out; echo err >&2; exit 3") as process:
        assert await process.stdout.read() == b"out\n"
        assert await process.stderr.read() == b"err\n"
        assert await process.wait() == Exit(code=3)
        assert await process.wait() == Exit(code=3)


@on_both_loops
async def test_a_megabyte_goes_in_at_stdin_and_comes_out_at_stdout(run_dir: Path) -> None:
    sent = os.urandom(1024 * 1024)
    async with started(run_dir, "cat") as process:

        async def send() -> None:
            process.stdin.write(sent)
            await process.stdin.drain()
            process.stdin.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            received = tasks.create_task(process.stdout.read())
        assert received.result() == sent
        assert await process.wait() == Exit(code=0)


@on_both_loops
async def test_a_child_killed_by_a_signal_tells_the_signal(run_dir: Path) -> None:
    async with started(run_dir, "sh", "-c", "kill -9 $$") as process:
        assert await process.wait() == Exit(signal=9)


@on_both_loops
async def test_a_killed_child_wakes_every_waiter(run_dir: Path) -> None:
    async with started(run_dir, "cat") as process, asyncio.TaskGroup() as tasks:
        waiters = [tasks.create_task(process.wait()) for _ in range(3)]
        os.kill(process.pid, 9)
        assert [await waiter for waiter in waiters] == [Exit(signal=9)] * 3


@on_both_loops
async def test_writing_to_a_child_that_is_gone_is_refused(run_dir: Path) -> None:
    async with started(run_dir, "true") as process:
        await process.wait()
        with pytest.raises(Unavailable, match="does not read its stdin"):
            process.stdin.write(b"x")
        process.stdin.close()


@on_both_loops
async def test_a_child_that_ends_while_it_is_written_to_fails_the_drain(run_dir: Path) -> None:
    async with started(run_dir, "head", "-c", "1") as process:
        process.stdin.write(bytes(1024 * 1024))
        with pytest.raises(Unavailable, match="stdin"):
            await process.stdin.drain()


@on_both_loops
async def test_interrupt_is_sigint_to_the_child(run_dir: Path) -> None:
    async with started(run_dir, "cat") as process:
        process.interrupt()
        assert await process.wait() == Exit(signal=2)
        process.interrupt()


STUBBORN = """
import os, signal, time
def tell(number, frame): os.write(1, b"%d\\n" % number)  # print is not reentrant
signal.signal(signal.SIGINT, tell)
signal.signal(signal.SIGTERM, tell)
os.write(1, b"ready\\n")
while True: time.sleep(60)
"""


async def test_stop_climbs_from_sigint_over_sigterm_to_sigkill(run_dir: Path) -> None:
    """By time alone, of which each step has more than a busy machine takes to run the child."""
    async with started(run_dir, *PYTHON, STUBBORN) as process:
        assert await process.stdout.readline() == b"ready\n"
        stopped = await process.stop(grace_s=5, interrupt_first=True)
        assert await process.stdout.read() == b"2\n15\n"
    assert stopped.exit == Exit(signal=9)
    assert stopped.pids_gone == (process.pid,)
    assert 5 <= stopped.elapsed_s < 60


@on_both_loops
async def test_a_second_stop_shortens_the_grace_of_the_first(run_dir: Path) -> None:
    async with started(run_dir, *PYTHON, STUBBORN) as process, asyncio.TaskGroup() as tasks:
        assert await process.stdout.readline() == b"ready\n"
        patient = tasks.create_task(process.stop(grace_s=60))
        assert await process.stdout.readline() == b"15\n"
        assert (await process.stop(grace_s=0)).exit == Exit(signal=9)
        assert (await patient).elapsed_s < 60


@on_both_loops
async def test_stop_of_a_child_that_has_ended_gives_its_exit_at_once(run_dir: Path) -> None:
    async with started(run_dir, "sh", "-c", "exit 4") as process:
        await process.wait()
        stopped = await process.stop(grace_s=60)
        assert (stopped.exit, stopped.pids_gone) == (Exit(code=4), (process.pid,))


@on_both_loops
async def test_what_a_child_leaves_running_is_gone_when_wait_returns(run_dir: Path) -> None:
    async with started(run_dir, "sh", "-c", "sleep 600 & setsid sleep 600 & echo $!") as process:
        left = int(await process.stdout.readline())
        assert await process.wait() == Exit(code=0)
        assert runner.read_stat(left) is None


@on_both_loops
async def test_a_child_that_signals_its_whole_group_does_not_reach_its_runner(run_dir: Path) -> None:
    async with started(run_dir, "sh", "-c", "kill -9 0") as process:
        assert await process.wait() == Exit(signal=9)
        assert process.pid in (await process.stop()).pids_gone


@on_both_loops
async def test_output_that_nobody_reads_holds_the_child_up_and_is_no_leak(run_dir: Path) -> None:
    await output_of(run_dir, "true")  # the loop itself keeps what it opens at the first child
    before = open_fds()
    async with started(run_dir, "sh", "-c", "echo go >&2; exec cat /dev/zero") as process:
        await process.stderr.readline()
        await process.stop(grace_s=0)
        assert len(await process.stdout.read()) < 4 * 1024 * 1024
    assert open_fds() == before


@on_both_loops
async def test_every_descriptor_is_given_back(run_dir: Path) -> None:
    await output_of(run_dir, "true")
    before = open_fds()
    async with Processes(run_dir) as processes:
        for _ in range(3):
            await (await processes.start(["echo", "unread"], env=ENV)).wait()
        with pytest.raises(NotFound):
            await processes.start(["no-such-command"], env=ENV)
    assert open_fds() == before


@on_both_loops
async def test_waiting_for_children_takes_no_threads(run_dir: Path) -> None:
    async with Processes(run_dir) as processes:
        before = set(threading.enumerate())
        children = [await processes.start(["cat"], env=ENV) for _ in range(4)]
        assert set(threading.enumerate()) <= before
        for child in children:
            await child.stop()
        assert set(threading.enumerate()) <= before


@on_both_loops
async def test_a_line_of_fifty_megabytes_is_read_in_pieces(run_dir: Path) -> None:
    async with started(run_dir, "head", "-c", "50000000", "/dev/zero") as process:
        sizes = []
        while piece := await process.stdout.read(1 << 20):
            sizes.append(len(piece))
        assert sum(sizes) == 50_000_000


@on_both_loops
async def test_an_error_in_the_body_stops_the_child(run_dir: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with started(run_dir, "cat") as process:
            raise ZeroDivisionError
    assert runner.read_stat(process.pid) is None


@on_both_loops
async def test_the_end_of_the_service_ends_every_child(run_dir: Path) -> None:
    async with Processes(run_dir, grace_s=0.1) as processes:
        children = [await processes.start(["sh", "-c", "trap '' TERM; cat"], env=ENV) for _ in range(4)]
    assert [runner.read_stat(child.pid) for child in children] == [None] * 4
    assert marks(run_dir) == []
    with pytest.raises(Unavailable, match="stopping"):
        await processes.start(["cat"], env=ENV)


@on_both_loops
async def test_the_end_of_the_service_ends_a_child_that_is_just_starting(run_dir: Path) -> None:
    for turns in range(12):  # of the loop: the end comes at another step of the start each time
        async with (
            asyncio.timeout(30),
            asyncio.TaskGroup() as group,
            Processes(run_dir, grace_s=60) as processes,
        ):
            starting = group.create_task(_start_and_wait(processes))
            for _ in range(turns):
                await asyncio.sleep(0)
        assert starting.result() is None or starting.result() == "not_started"
        assert marks(run_dir) == []


async def _start_and_wait(processes: Processes) -> object:
    try:
        child = await processes.start(["sleep", "60"], env=ENV)
    except Unavailable as error:
        return error.details["reason"].replace("stopping", "not_started")
    await child.wait()
    return None


async def test_a_cancelled_start_leaves_nothing(run_dir: Path) -> None:
    async with Processes(run_dir) as processes:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await processes.start(["cat"], env=ENV)
    assert marks(run_dir) == []
    assert processes.statistics() == ProcessesStatistics(running=0, started=0, reaped=0)


@on_both_loops
async def test_a_start_that_takes_too_long_is_refused_and_leaves_nothing(run_dir: Path) -> None:
    async with Processes(run_dir, start_timeout_s=0) as processes:
        with pytest.raises(Unavailable, match="not started within 0 s"):
            await processes.start(["cat"], env=ENV)
    assert marks(run_dir) == []


@on_both_loops
async def test_statistics_count_children(run_dir: Path) -> None:
    async with Processes(run_dir) as processes:
        async with await processes.start(["cat"], env=ENV), await processes.start(["cat"], env=ENV):
            assert processes.statistics() == ProcessesStatistics(running=2, started=2, reaped=0)
        assert processes.statistics() == ProcessesStatistics(running=0, started=2, reaped=0)


@on_both_loops
async def test_children_past_the_limit_are_refused(run_dir: Path) -> None:
    async with Processes(run_dir, max_children=1) as processes:
        async with await processes.start(["cat"], env=ENV):
            with pytest.raises(ResourceExhausted, match="1 of 1"):
                await processes.start(["cat"], env=ENV)
        async with await processes.start(["cat"], env=ENV):
            pass


@on_both_loops
async def test_the_environment_is_exactly_what_was_given(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "secret")
    given = {"PATH": ENV["PATH"], "ÜMLAUT": "line\nbreak", "EMPTY": ""}
    output = await output_of(run_dir, "cat", "/proc/self/environ", env=given)
    assert output == b"".join(f"{name}={value}\0".encode() for name, value in given.items())


@on_both_loops
async def test_arguments_arrive_exactly(run_dir: Path) -> None:
    words = ["$(id)", "`id`", "; rm -rf /", "-rf", "--", "a\nb", "", "'\"\\", "ü😀", "\udcff", "x" * 100_000]
    output = await output_of(run_dir, "printf", "%s\\0", *words)
    assert output == b"".join(os.fsencode(word) + b"\0" for word in words)


@on_both_loops
async def test_a_child_inherits_no_descriptor_but_its_streams(run_dir: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    script = "import os; print([fd for fd in range(3, 4096) if os.path.exists(f'/proc/self/fd/{fd}')])"
    try:
        twin = partial(subprocess.check_output, [*PYTHON, script], close_fds=False)
        assert str(writing) in str(await asyncio.to_thread(twin))
        assert await output_of(run_dir, *PYTHON, script) == b"[]\n"
    finally:
        os.close(reading)
        os.close(writing)


@on_both_loops
async def test_umask_limits_signals_and_directory_are_set(run_dir: Path) -> None:
    limits = Limits(cpu_s=100, file_bytes=1024 * 1024, open_files=128)
    script = "umask; pwd; ulimit -t; ulimit -n; ulimit -c; grep -E 'Sig(Ign|Blk)' /proc/$$/status"
    output = await output_of(run_dir, "bash", "-c", script, cwd="/usr", limits=limits)
    ignored = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    assert output.decode() == f"0077\n/usr\n100\n128\n0\n{ignored}"


@on_both_loops
async def test_a_limit_never_exceeds_what_the_daemon_may_have(run_dir: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    output = await output_of(run_dir, "sh", "-c", "ulimit -n", limits=Limits(open_files=hard * 2))
    assert int(output) == hard


@pytest.mark.parametrize(
    ("argv", "cwd", "error", "words"),
    [
        (["no-such-command"], "/", NotFound, "'no-such-command': no such file"),
        (["/no/such/command"], "/", NotFound, "'/no/such/command'"),
        (["cat"], "/no/such/dir", NotFound, "in '/no/such/dir'"),
        (["/etc/passwd"], "/", PermissionDenied, "'/etc/passwd'"),
        (["cat", "a\0b"], "/", InvalidArgument, "null character"),
        (["cat", "x" * 200_000], "/", InvalidArgument, "argument list too long"),
        ([], "/", InvalidArgument, "begins with a command"),
        ("cat", "/", InvalidArgument, "not a list"),
    ],
)
async def test_what_cannot_be_started_is_a_clear_error(
    run_dir: Path, argv: list[str], cwd: str, error: type[KSIError], words: str
) -> None:
    async with Processes(run_dir) as processes:
        with pytest.raises(error, match=words):
            await processes.start(argv, env=ENV, cwd=cwd)
        assert processes.statistics().running == 0
    assert marks(run_dir) == []


@pytest.mark.parametrize("name", ["A=B", "", "A\0B"])
async def test_a_name_that_no_environment_can_hold_is_refused(run_dir: Path, name: str) -> None:
    async with Processes(run_dir) as processes:
        with pytest.raises(InvalidArgument):
            await processes.start(["cat"], env={name: "x"})


@on_both_loops
async def test_a_running_child_has_a_mark_that_names_it(run_dir: Path) -> None:
    async with started(run_dir, "cat", purpose="test") as process:
        (mark,) = marks(run_dir)
        stat = runner.read_stat(process.pid)
        assert stat is not None
        assert (mark["pid"], mark["pid_started"]) == (process.pid, stat.started)
        assert (mark["runner"], mark["purpose"], mark["boot_id"]) == (stat.parent, "test", runner.boot_id())
        assert mode(run_dir / "children") == 0o700
        assert mode(run_dir / "children" / str(process.pid)) == 0o600
        await process.stop()
        assert marks(run_dir) == []


@on_both_loops
async def test_the_runner_shows_nothing_of_the_child_to_ps(run_dir: Path) -> None:
    async with started(run_dir, "cat", "-", "prompt-4711", env={**ENV, "KEY": "secret-4711"}) as process:
        (mark,) = marks(run_dir)
        assert shown(process.pid).count(b"4711") == 2, "the twin: the child itself shows both"
        assert shown(mark["runner"]).count(b"4711") == 0


@on_both_loops
async def test_twenty_children_at_once_keep_apart(run_dir: Path) -> None:
    async with Processes(run_dir) as processes:

        async def echo(number: int) -> bytes:
            async with await processes.start(["echo", str(number)], env=ENV) as process:
                return await process.stdout.read()

        async with asyncio.TaskGroup() as tasks:
            echoes = [tasks.create_task(echo(number)) for number in range(20)]
        assert [int(task.result()) for task in echoes] == list(range(20))


async def test_a_start_cancelled_in_the_moment_of_success_leaves_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Processes(run_dir) as processes, asyncio.TaskGroup() as group:
        task = group.create_task(processes.start(["sleep", "60"], env=ENV))
        await asyncio.sleep(0)
        (link,) = processes._links
        started = link.started.set

        def start_and_cancel() -> None:
            started()
            task.cancel()

        monkeypatch.setattr(link.started, "set", start_and_cancel)
        async with asyncio.timeout(30):
            await link.ended.wait()
    assert task.cancelled()


class Watcher:
    """Hears of children."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, Exit | None]] = []

    async def child_started(self, child: Child) -> None:
        self.heard.append((child.pid, None))

    async def child_ended(self, child: Child, how: Exit, pids_gone: Sequence[int]) -> None:
        del pids_gone
        self.heard.append((child.pid, how))


async def test_a_child_is_told_of_where_no_file_can_be_opened_to_look_at_it(run_dir: Path) -> None:
    watcher = Watcher()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with started(run_dir, *PYTHON, "pass") as process:
        await process.wait()
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            await watch(process._link, "child", [watcher])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert watcher.heard == [(process.pid, None), (process.pid, Exit(code=0))]
