"""Run the daemon as a process: under its supervisor, in this terminal, or only to check the settings."""

import os
import select
import signal
import subprocess
import sys
from typing import IO, Final, NoReturn

from ksi_client.control.processes import Process
from ksi_client.control.wording import Exit
from ksi_common.paths import Paths

CHECK_S: Final = 60.0
END_S: Final = 5.0

DAEMON: Final = (sys.executable, "-P", "-m", "ksi_daemon")
"""``-P``: what lies in the working directory is not imported."""


class CannotStart(Exception):
    """The daemon has ended, or was not ready in time.

    ``code``: None where it was too slow, 0 where it was stopped. ``printed``: its last words, if any.
    """

    def __init__(self, code: int | None, printed: str) -> None:
        super().__init__(printed)
        self.code = code
        self.printed = printed


def launch(paths: Paths, *, timeout_s: float) -> None:
    """Start the supervisor and return when its daemon serves; raise CannotStart where it does not."""
    with (paths.log.parent / "output.log").open("a+b") as output:
        offset = output.tell()
        reading, writing = os.pipe()
        try:
            pid = _spawn_supervisor(paths, output, ready_fd=writing)
        finally:
            os.close(writing)
        try:
            is_ready, code = _wait_ready(pid, reading, timeout_s)
        finally:
            os.close(reading)
        if not is_ready:
            output.seek(offset)
            raise CannotStart(code, output.read().decode(errors="replace"))


def become_daemon(paths: Paths) -> NoReturn:
    """Turn this process into the daemon, which then logs to stderr as well."""
    sys.stdout.flush()
    os.execve(sys.executable, [*DAEMON, "--echo"], environment(paths))  # noqa: S606 -- our own module


def check(paths: Paths) -> tuple[bool, str]:
    """Read the settings and import the plugins, in a process of its own.

    Gives whether a daemon could start, and the problems found, which may be of plugins it can do without.
    """
    try:
        done = subprocess.run(  # noqa: S603 -- our own module
            (*DAEMON, "--check"),
            env=environment(paths),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=CHECK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"the check did not end within {CHECK_S:.0f} s"
    return done.returncode == 0, done.stdout.decode(errors="replace").strip()


def environment(paths: Paths) -> dict[str, str]:
    """Give the environment of a daemon of this home."""
    return {**os.environ, "KSI_HOME": str(paths.home)}


def _spawn_supervisor(paths: Paths, output: IO[bytes], *, ready_fd: int) -> int:
    os.set_inheritable(ready_fd, True)  # noqa: FBT003 -- its signature
    supervisor = (sys.executable, "-P", "-m", "ksi_daemon.process_supervisor", str(paths.home))
    return os.posix_spawn(
        sys.executable,
        (*supervisor, "--ready-fd", str(ready_fd), "--", *DAEMON),
        environment(paths),
        file_actions=(
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
        ),
        setsid=True,  # it outlives this terminal
    )


def _wait_ready(supervisor_pid: int, reading: int, timeout_s: float) -> tuple[bool, int | None]:
    """Give whether the supervisor says that the daemon serves, and the code with which it ended, or None."""
    readable, _, _ = select.select([reading], [], [], timeout_s)
    if readable and os.read(reading, 64):
        return True, None
    if not readable:
        _end(supervisor_pid)
    _, status = os.waitpid(supervisor_pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return False, (code if code >= 0 else Exit.FAILED) if readable else None


def _end(supervisor_pid: int) -> None:
    with Process(supervisor_pid) as supervisor:
        supervisor.send(signal.SIGTERM)
        if not supervisor.wait(END_S):
            supervisor.send(signal.SIGKILL)
