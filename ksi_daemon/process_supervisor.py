"""A small process above the daemon: starts it, brings it back after a crash, gives up on a crash loop.

    python -m ksi_daemon.process_supervisor HOME [--ready-fd N] -- COMMAND...

It stays for as long as the daemon does, so it imports the leanest of the standard library only, and is told
its home: ``ksi_common.paths`` would nearly double its size. It leaves with the daemon's exit code where that
one ended as asked or could not start, with 1 after a crash loop. Killed itself, it leaves the daemon serving.
"""
# pathlib and typing would be a tenth of this process.
# ruff: noqa: PTH100, PTH103, PTH105, PTH108, PTH110, PTH118, PTH120

import io
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress

CRASHES_ALLOWED, CRASH_WINDOW_S = 5, 300.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 60.0
STABLE_AFTER_S = 60.0
WATCHDOG_S = 60.0
LAST_CHANCE_S = 10.0
"""For a silent daemon that was only stopped, as we may have been with it; and then, to end."""
NOT_SPAWNED = 127
"""In place of an exit code, where there was no process to be had; the shell says the same."""
MARK_BYTES = 128
"""Of one name in the breadcrumb: ``breadcrumb.SIZE``."""
MAX_OUTPUT_BYTES, OUTPUT_CHECK_S = 4 * 1024 * 1024, 3600.0

STOPPED, CANNOT_START, LOCK_HELD, NEWER_SCHEMA = 0, 1, 4, 7
"""Exit codes that starting again would not change; ``CANNOT_START`` only where the daemon never served."""

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class CrashHistory:
    """Decides how long to wait after each crash, and when there were too many."""

    def __init__(self) -> None:
        self._crashes: deque[float] = deque(maxlen=CRASHES_ALLOWED)
        self._delay_s = FIRST_DELAY_S

    def delay_after_crash(self, now: float, *, lived_s: float) -> float | None:
        """Give the seconds to wait before the next start; None where it is time to give up."""
        self._crashes.append(now)
        if len(self._crashes) == CRASHES_ALLOWED and now - self._crashes[0] <= CRASH_WINDOW_S:
            return None
        delay_s = FIRST_DELAY_S if lived_s >= STABLE_AFTER_S else self._delay_s
        self._delay_s = min(delay_s * 2, LONGEST_DELAY_S)
        return delay_s


class Supervisor:
    """Runs one daemon after another until one ends for good."""

    def __init__(
        self,
        home: str,
        command: Sequence[str],
        *,
        ready_fd: int | None = None,
        watchdog_s: float = WATCHDOG_S,
        last_chance_s: float = LAST_CHANCE_S,
    ) -> None:
        self._home = home
        self._command = list(command)
        self._ready_fd = ready_fd
        self._watchdog_s = watchdog_s
        self._last_chance_s = last_chance_s
        self._history = CrashHistory()
        self._suspects: list[str] = []
        self._restarts = 0
        self._last_exit: str | None = None
        self._child: int | None = None
        self._served = False
        self._stopping = False
        self._watchdog_at: float | None = None
        self._silences = 0
        self._wakeup = _wake_on_signals()
        self._notices = _notice_socket()
        for number in FORWARDED:
            signal.signal(number, self._forward)

    def run(self) -> int:
        """Supervise until the daemon has stopped or cannot run; give the exit code."""
        while not self._stopping:
            started = time.monotonic()
            status = self._run_daemon()
            if self._stopping or self._is_final(status):
                return self._leave(max(status, STOPPED))
            delay_s = self._note_crash(status, lived_s=time.monotonic() - started)
            if delay_s is None:
                return self._give_up()
            self._wait_until(time.monotonic() + delay_s)
            self._restarts += 1
        return self._leave(STOPPED)

    def _run_daemon(self) -> int:
        """Start the daemon and wait for its end; give its exit code, or minus the signal that ended it."""
        self._watchdog_at, self._silences = None, 0
        try:
            child = self._spawn()
        except OSError as error:  # no memory, too many processes, or our Python is just being installed anew
            self._log("error", "daemon.not_spawned", error=str(error))
            return NOT_SPAWNED
        self._record()
        while True:
            reaped, status = os.waitpid(child, os.WNOHANG)
            if reaped:
                self._child = None
                return os.waitstatus_to_exitcode(status)
            self._wait(self._watchdog_at)

    def _spawn(self) -> int:
        # A signal that came between the birth of the child and our knowing its number would never reach it.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            # A process group of its own: Ctrl-C in a terminal reaches the daemon once, through us.
            self._child = os.posix_spawnp(
                self._command[0], self._command, self._environment(), setpgroup=0, setsigmask=()
            )
            if self._stopping:  # since we last looked, when there was no child to pass it on to
                os.kill(self._child, signal.SIGTERM)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        return self._child

    def _environment(self) -> Mapping[str, str]:
        environment = {
            **os.environ,
            "KSI_HOME": self._home,
            "NOTIFY_SOCKET": "@" + self._notices.getsockname()[1:].decode(),
            "WATCHDOG_USEC": f"{self._watchdog_s * 1_000_000:.0f}",
            "PYTHONFAULTHANDLER": "1",
        }
        environment.pop("WATCHDOG_PID", None)
        if self._suspects:
            environment["KSI_CRASHED_PLUGIN"] = ",".join(self._suspects)
        return environment

    def _is_final(self, status: int) -> bool:
        if status == CANNOT_START:  # it said why; unless a plugin ended it in the middle of something
            return not self._served and not os.path.exists(self._breadcrumb)
        # Ended by SIGTERM or SIGINT: someone asked before the daemon was listening for it.
        return status in {STOPPED, LOCK_HELD, NEWER_SCHEMA, -signal.SIGTERM, -signal.SIGINT}

    def _note_crash(self, status: int, *, lived_s: float) -> float | None:
        self._last_exit = describe_exit(status)
        self._suspect_breadcrumb(killed=status == -signal.SIGKILL and not self._silences)
        delay_s = self._history.delay_after_crash(time.monotonic(), lived_s=lived_s)
        self._log(
            "error", "daemon.crashed", exit=self._last_exit, restart_in_s=delay_s, suspects=self._suspects
        )
        self._record()
        return delay_s

    def _suspect_breadcrumb(self, *, killed: bool) -> None:
        """Remember the plugin that was running: it stays off for as long as this supervisor lives.

        What the loop ran is named first, then what ran in threads: that is suspected where the loop did
        nothing. A daemon that was ended from outside, by SIGKILL, makes nobody suspect.
        """
        with suppress(OSError), io.FileIO(self._breadcrumb) as file:
            marks = file.read()
            os.unlink(self._breadcrumb)
            named = [_name_in(marks[at : at + MARK_BYTES]) for at in range(0, len(marks), MARK_BYTES)]
            running = named[:1] if named and named[0] else named[1:]
            for plugin in () if killed else running:
                if plugin and plugin not in self._suspects:
                    self._suspects.append(plugin)

    # Waiting: for the daemon's end, a signal, a notice of the daemon, or a moment.

    def _wait_until(self, moment: float) -> None:
        while not self._stopping and time.monotonic() < moment:
            self._wait(moment)

    def _wait(self, moment: float | None) -> None:
        timeout_s = OUTPUT_CHECK_S if moment is None else moment - time.monotonic()
        watched: list[int] = [self._wakeup, self._notices.fileno()]
        readable, _, _ = select.select(watched, [], [], min(max(timeout_s, 0.0), OUTPUT_CHECK_S))
        if self._wakeup in readable:
            os.read(self._wakeup, 4096)
        if self._notices.fileno() in readable:
            self._take_notice(self._notices.recv(4096).split(b"\n"))
        self._check_watchdog()
        _bound_output()

    def _take_notice(self, assignments: Sequence[bytes]) -> None:
        if b"READY=1" in assignments:
            self._served = True
            self._tell_ready()
        if b"WATCHDOG=1" in assignments:  # the first one arms it: a daemon that sends none is not watched
            self._watchdog_at, self._silences = time.monotonic() + self._watchdog_s, 0

    def _tell_ready(self) -> None:
        if self._ready_fd is None:
            return
        ready_fd, self._ready_fd = self._ready_fd, None
        with suppress(BrokenPipeError):  # whoever started us has not waited
            os.write(ready_fd, b"READY=1\n")
        os.close(ready_fd)

    def _check_watchdog(self) -> None:
        """End a daemon whose loop has stopped turning.

        The first silence may be that of a machine that stood still, with us. SIGABRT makes it print where it
        stands; SIGKILL ends one that is stopped, or that a plugin has made deaf to it.
        """
        if self._child is None or self._watchdog_at is None or time.monotonic() < self._watchdog_at:
            return
        self._watchdog_at = time.monotonic() + self._last_chance_s
        self._silences += 1
        if self._silences == 2:
            self._log("error", "daemon.stuck", pid=self._child, silent_s=self._watchdog_s)
            os.kill(self._child, signal.SIGABRT)
        elif self._silences > 2:
            os.kill(self._child, signal.SIGKILL)

    def _forward(self, number: int, _frame: object) -> None:
        if number != signal.SIGHUP:
            self._stopping = True
        if self._child is not None:
            with suppress(ProcessLookupError):  # it has just ended, and is reaped next
                os.kill(self._child, number)

    # What is left for people to read.

    def _give_up(self) -> int:
        reason = f"the daemon crashed {CRASHES_ALLOWED} times in {CRASH_WINDOW_S / 60:.0f} minutes"
        sys.stderr.write(f"KSI was given up: {reason}, the last time by {self._last_exit}\n")
        self._log("critical", "daemon.given_up", reason=reason, exit=self._last_exit, suspects=self._suspects)
        self._record(gave_up=reason)
        return CANNOT_START

    def _leave(self, code: int) -> int:
        # One that came now, as from a second stop, would find no handler: the interpreter takes ours away.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        with suppress(OSError, ValueError, KeyError, TypeError), io.FileIO(self._state_file) as file:
            if json.loads(file.read())["pid"] == os.getpid():  # not that of who has a home in its place
                os.unlink(self._state_file)
        return code

    @property
    def _breadcrumb(self) -> str:
        return os.path.join(self._home, "run", "breadcrumb")

    @property
    def _state_file(self) -> str:
        return os.path.join(self._home, "run", "supervisor.json")

    def _record(self, *, gave_up: str | None = None) -> None:
        state = {
            "pid": os.getpid(),
            "daemon_pid": self._child,
            "restarts": self._restarts,
            "last_exit": self._last_exit,
            "suspects": self._suspects,
            "gave_up": gave_up,
        }
        unfinished = f"{self._state_file}.new"
        with suppress(OSError):  # a full disk is no reason to leave the daemon alone
            with _open_private(unfinished, "wb") as file:
                file.write(json.dumps(state).encode())
            os.replace(unfinished, self._state_file)

    def _log(self, level: str, event: str, **fields: object) -> None:
        """Add a line to the daemon's log; it is opened anew each time, for the daemon may rotate it."""
        line = {"timestamp": _timestamp(), "level": level, "event": event, "logger": "supervisor", **fields}
        path = os.path.join(self._home, "logs", "daemon", "ksi.jsonl")
        with suppress(OSError), _open_private(path, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")


def _name_in(mark: bytes) -> str:
    # What stands behind the end is of another name, of a write that was broken off.
    return mark.partition(b"\0")[0].decode(errors="replace").strip()


def describe_exit(status: int) -> str:
    """Name how a process ended: ``SIGSEGV``, or ``exit code 3``."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _wake_on_signals() -> int:
    """Give a pipe that becomes readable whenever a signal arrives, SIGCHLD included."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reading


def _notice_socket() -> socket.socket:
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind("")  # the system picks a free abstract name
    return notices


def _open_private(path: str, mode: str) -> io.FileIO:
    """Open a file that only the owner may read, in a folder that is made where it is missing."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    return io.FileIO(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))


def _timestamp() -> str:
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06d}Z"


def _bound_output() -> None:
    """Empty our output file where it has grown large; the daemon appends, so it goes on at its start."""
    if os.fstat(2).st_size > MAX_OUTPUT_BYTES:
        os.ftruncate(2, 0)


def main(arguments: Sequence[str]) -> int:
    """Supervise the command after ``--``."""
    split = arguments.index("--")
    home, *options = arguments[:split]
    ready_fd = int(options[1]) if options[:1] == ["--ready-fd"] else None
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)  # noqa: FBT003 - it takes no keyword
    return Supervisor(os.path.abspath(home), arguments[split + 1 :], ready_fd=ready_fd).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
