"""The service for child processes: each under a runner, none left behind.

    async with Processes(run_dir) as processes:
        async with await processes.start(["claude", "-p"], env={"PATH": path}, cwd=sandbox) as process:
            process.stdin.write(prompt)
            process.stdin.close()
            answer = await process.stdout.read()

`ksi_daemon.runner` says what makes "none" true.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog

from ksi_common.errors import InvalidArgument, ResourceExhausted, Unavailable
from ksi_common.records import record
from ksi_daemon.child_watchers import Child, ChildWatcher, watch
from ksi_daemon.runner_link import Exit, RunnerLink
from ksi_daemon.runner_marks import KILL_S, Reaped, reap_all, reap_runner

__all__ = [
    "Child",
    "ChildWatcher",
    "Exit",
    "Limits",
    "Process",
    "Processes",
    "ProcessesStatistics",
    "Reaped",
    "Stopped",
]

GRACE_S: Final = 5.0
MAX_CHILDREN: Final = 64
START_TIMEOUT_S: Final = 10.0

log = structlog.get_logger()


@record
class Limits:
    """Bound a child's resources; None leaves the daemon's own, which is never exceeded."""

    cpu_s: int | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = None
    open_files: int | None = 4096
    core_bytes: int | None = 0

    def as_rlimits(self) -> dict[str, int]:
        """Give the limits by the names of the module resource."""
        limits = {
            "RLIMIT_CPU": self.cpu_s,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": self.core_bytes,
        }
        return {name: value for name, value in limits.items() if value is not None}


@record
class Stopped:
    """Prove that nothing of a child is left; ``pids_gone`` names at most 1,000."""

    exit: Exit
    pids_gone: tuple[int, ...]
    elapsed_s: float


@record
class ProcessesStatistics:
    """Count the children: running now, started ever, and those whose runner was found dead."""

    running: int
    started: int
    reaped: int


class Process:
    """One child, its streams and its end; as a context manager it is stopped on the way out.

    While the child runs, output that nobody reads holds it up at 2 MiB. When it ends, what is left in its
    pipes is read into memory and they are closed, whether anybody reads or not. A line over 1 MiB is a
    ValueError of ``readline``; ``read(n)`` takes it in pieces.
    """

    def __init__(self, link: RunnerLink, *, purpose: str) -> None:
        self.purpose = purpose
        self.pid = link.pid
        self.stdin = link.stdin
        self.stdout, self.stderr = link.readers
        self._link = link

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def wait(self) -> Exit:
        """Wait until the child, and everything that it started, is gone.

        What it leaves running gets SIGTERM when it ends, and SIGKILL 2 s later. May be called often, by many.
        Raises DeadlineExceeded where a process outlives SIGKILL.
        """
        await self._link.ended.wait()
        if self._link.failure:
            raise self._link.failure
        return self._link.exit

    async def stop(self, *, grace_s: float = GRACE_S, interrupt_first: bool = False) -> Stopped:
        """End the child and everything below it: SIGTERM now, SIGKILL after ``grace_s`` seconds.

        With ``interrupt_first``: SIGINT to the child alone now, SIGTERM to all at half the grace. May be
        called again, and then only shortens the grace; cancelling it undoes nothing. Raises as `wait` does.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._link.order(do="stop", grace_s=grace_s, interrupt=interrupt_first)
        try:
            async with asyncio.timeout(grace_s + KILL_S):
                await self._link.ended.wait()
        except TimeoutError:
            # A runner that does not get there is stuck itself. Without it, its mark says what to kill.
            self._link.kill_runner()
        how = await self.wait()
        return Stopped(how, self._link.pids_gone, loop.time() - began)

    def interrupt(self) -> None:
        """Send SIGINT to the child alone; nothing happens after its end."""
        self._link.order(do="interrupt")


class Processes:
    """Start children, know which run, and end them all on the way out.

    ``run_dir`` gets a folder ``children`` with a mark for each child. On the way in, what survives under the
    marks of an earlier daemon is killed, and listed in ``reaped``.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        max_children: int = MAX_CHILDREN,
        start_timeout_s: float = START_TIMEOUT_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self.reaped: tuple[Reaped, ...] = ()
        self._marks = run_dir.absolute() / "children"
        self._max_children = max_children
        self._start_timeout_s = start_timeout_s
        self._grace_s = grace_s
        self._links: set[RunnerLink] = set()
        self._watchers: list[ChildWatcher] = []
        self._followers = asyncio.TaskGroup()
        self._is_open = False
        self._started_count = 0
        self._reaped_count = 0

    async def __aenter__(self) -> Self:
        self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a thread, here and below: it reads all of /proc, and waits for the killed to die.
        self.reaped = await asyncio.to_thread(reap_all, self._marks)
        self._note_reaped(self.reaped)
        await self._followers.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        try:
            await self._end_all()
        finally:
            # Without the body's error: the group would only wrap it, there is nothing left to cancel.
            await self._followers.__aexit__(None, None, None)

    async def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | str = "/",
        limits: Limits | None = None,
        purpose: str = "child",
    ) -> Process:
        """Start a child with exactly these arguments and this environment, and no shell.

        The command is looked up in the PATH of ``env``; ``purpose`` names the child in its mark and in logs.
        Raises NotFound, PermissionDenied or InvalidArgument for a command that cannot be run,
        ResourceExhausted at the limit of children, Unavailable where no runner can be had in time.
        Cancelling it ends what was started.
        """
        self._admit(argv, env)
        spec = {
            "argv": list(argv),
            "env": dict(env),
            "cwd": os.fspath(cwd),
            "limits": (limits or Limits()).as_rlimits(),
            "marks": str(self._marks),
            "purpose": purpose,
        }
        link = RunnerLink.launch()
        self._links.add(link)
        self._followers.create_task(self._follow(link, spec), name=f"child {purpose}")
        if self._watchers:
            self._followers.create_task(watch(link, purpose, self._watchers), name=f"watch {purpose}")
        await self._wait_started(link)
        self._started_count += 1
        log.info("child.started", pid=link.pid, purpose=purpose)
        return Process(link, purpose=purpose)

    def add_watcher(self, watcher: ChildWatcher) -> None:
        """Tell it of each child from now on."""
        self._watchers.append(watcher)

    def statistics(self) -> ProcessesStatistics:
        """Count the children."""
        return ProcessesStatistics(len(self._links), self._started_count, self._reaped_count)

    def _admit(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        if not self._is_open:
            raise Unavailable("no child can be started, the daemon is stopping", reason="stopping")
        if len(self._links) >= self._max_children:
            raise ResourceExhausted(f"too many children ({len(self._links)} of {self._max_children})")
        if isinstance(argv, str) or not argv or not argv[0]:
            raise InvalidArgument("argv is not a list that begins with a command", reason="bad_argv")
        if any("\0" in word for word in (*argv, *env, *env.values())):
            raise InvalidArgument("argv and env cannot hold a null character", reason="bad_argv")
        if any(not name or "=" in name for name in env):
            raise InvalidArgument("a name in env is empty or holds '='", reason="bad_env")

    async def _wait_started(self, link: RunnerLink) -> None:
        started = False
        try:
            async with asyncio.timeout(self._start_timeout_s):
                started = await link.started.wait()
        except TimeoutError:
            message = f"child not started within {self._start_timeout_s:g} s"
            raise Unavailable(message, reason="not_started") from None
        finally:
            # Also where it was started in that very moment: nobody is given a Process to stop it by.
            if not started:
                link.kill_runner()
        if link.failure:
            raise link.failure

    async def _follow(self, link: RunnerLink, spec: Mapping[str, Any]) -> None:
        """Serve one child from the start of its runner until nothing is left of either."""
        try:
            await link.converse(spec)
        finally:
            await link.wait_runner()
            if not link.is_gone:
                await self._reap(link)
            if link.started.is_set():
                log.info("child.ended", pid=link.pid, code=link.exit.code, signal=link.exit.signal)
            self._links.discard(link)
            await link.finish()

    async def _reap(self, link: RunnerLink) -> None:
        """Kill what a killed runner left."""
        try:
            reaped = await asyncio.to_thread(reap_runner, self._marks, link.runner_pid)
        except OSError as error:
            # No descriptor to read /proc by: the mark stays for the next start.
            link.failure = Unavailable(
                f"cannot look for what a child left: {error.strerror}", reason="unknown"
            )
            log.error("child.lost", runner=link.runner_pid, error=str(error))  # noqa: TRY400 - no bug, no traceback
            return
        self._note_reaped(reaped)
        link.note_reaped(reaped)

    async def _end_all(self) -> None:
        """Climb all ladders at once."""
        links = tuple(self._links)
        for link in links:
            if link.started.is_set():
                link.order(do="stop", grace_s=self._grace_s, interrupt=False)
            else:  # its runner takes no orders yet
                link.kill_runner()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._grace_s + KILL_S):
                    for link in links:
                        await link.ended.wait()
        finally:
            for link in links:
                link.kill_runner()

    def _note_reaped(self, reaped: Sequence[Reaped]) -> None:
        self._reaped_count += len(reaped)
        for found in reaped:
            tell = log.error if found.pids_left else log.warning
            tell("child.reaped", pid=found.pid, purpose=found.purpose, left=found.pids_left)
