"""Run one child, and let nothing that it starts outlive the daemon.

The daemon starts this file as a script, ``python -I -S runner.py <fd>``: the standard library alone, for its
small start. ``fd`` is a socket to the daemon that carries JSON lines:

    -> {"argv": [...], "env": {...}, "cwd": "/", "limits": {...}, "marks": "...", "purpose": "..."}  first
    -> {"do": "interrupt"}                                            SIGINT to the child
    -> {"do": "stop", "grace_s": 5.0, "interrupt": true}              (SIGINT,) SIGTERM, SIGKILL
    <- {"report": "started", "pid": 7}    or   {"report": "failed", "step": "exec", "errno": 2}
    <- {"report": "exited", "code": 0, "signal": null}
    <- {"report": "gone", "pids": [7]}                                nothing is left; the runner ends

Three things make "nothing is left" true:

- The runner is a child subreaper: whatever the child starts stays below the runner, however it forks, until
  it is reaped here. So ``waitpid`` saying that there is no child left is the kernel's own proof.
- The daemon's death, even by SIGKILL, ends the socket, and that starts the ladder.
- Against the death of the runner itself there is a mark: a file that names the processes, and a cookie, kept
  in a resource limit that no kernel has enforced since 2.4. Every descendant inherits it through fork, exec,
  setsid and a cleared environment, and its owner may read it in any process: `carriers` finds them all.
"""

# Of pathlib, the import alone costs a third of the start.
# ruff: noqa: PTH105, PTH108, PTH123, PTH208

import contextlib
import errno
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Any, NamedTuple, NoReturn

GRACE_S = 2.0
"""From SIGTERM to SIGKILL where nobody said: the daemon died, or the child left processes behind."""

MAX_PIDS = 1000
"""How many pids a report names."""

MIN_COOKIE = 1 << 40
"""Below this is what somebody may have set by hand; "unlimited", which everybody has, is -1."""

_COOKIE_LIMIT = 10
"""RLIMIT_LOCKS: kept and inherited by the kernel, without any effect."""

_RESCAN_S = (0.005, 0.2)
"""How often to look for processes that were forked meanwhile: at first, and at last."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Stat(NamedTuple):
    """What ``/proc/<pid>/stat`` says of a process; ``started``: clock ticks since boot."""

    state: str
    parent: int
    started: int


def read_stat(pid: int) -> Stat | None:
    """Read the state of a process; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the command's name in brackets, and may hold anything, brackets included.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Stat(fields[0].decode(), int(fields[1]), int(fields[19]))


def boot_id() -> str:
    """Name this boot of the machine: pids and start times mean nothing outside it."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def carriers(cookie: int) -> Iterator[int]:
    """Yield the processes that carry the cookie, newest first: a forking one is caught by its tail."""
    for pid in _pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if resource.prlimit(pid, _COOKIE_LIMIT) == (cookie, cookie):
                yield pid


def descendants(root: int) -> Iterator[int]:
    """Yield the processes below ``root``, parents before children."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        if stat := read_stat(pid):
            children.setdefault(stat.parent, []).append(pid)
    pending = [root]
    while pending:
        below = children.pop(pending.pop(), [])
        yield from below
        pending += below


def send_signal(pid: int, number: int) -> None:
    """Signal a process that may be gone, or not ours to signal."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def main(fd: int) -> None:
    """Run the child that the first line from ``fd`` describes, until nothing of it is left."""
    os.umask(0o077)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    control = Control(fd)
    if spec := control.read_first():
        Runner(control, spec).run()


class Control:
    """The socket to the daemon."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # noqa: FBT003 - the function takes no keyword
        self.fd: int | None = fd
        self._received = b""

    def read_first(self) -> dict[str, Any] | None:
        """Wait for the first line; None where the daemon goes away before it."""
        # The daemon says nothing more before it has had a report, so no second line can be with it.
        while self.fd is not None:
            for line in self.read():
                return line
        return None

    def read(self) -> list[dict[str, Any]]:
        """Wait for bytes, give the lines that are complete; at the end of the daemon ``fd`` becomes None."""
        assert self.fd is not None
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = os.read(self.fd, 65536)
        if not data:
            os.close(self.fd)
            self.fd = None
        *lines, self._received = (self._received + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def report(self, report: str, **fields: Any) -> None:
        """Tell the daemon, if it is alive."""
        if self.fd is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # A report is far smaller than the socket's buffer: it is written whole.
                os.write(self.fd, json.dumps({"report": report, **fields}).encode() + b"\n")


class Runner:
    """The one child, what it started, and the ladder that ends them."""

    def __init__(self, control: Control, spec: Mapping[str, Any]) -> None:
        self._control = control
        self._spec = spec
        self._wakeup = _signals_as_bytes()
        self._cookie = _take_cookie()
        self._child: int | None = None
        self._signalled: set[int] = set()
        self._term_at = inf
        self._kill_at = inf
        self._rescan_s = _RESCAN_S[0]

    def run(self) -> None:
        """Start the child, and return when no process is left below this one."""
        pid, failure = spawn(self._spec, cookie=self._cookie)
        _let_go_of_streams()
        if failure:
            self._control.report("failed", **failure)
        else:
            self._control.report("started", pid=pid)
        self._child = pid
        while self._reap():
            self._climb()
            self._wait()
        for name in (f"{pid}", f"{pid}.tmp"):
            # It may be unwritten yet, or taken away by a daemon that reaps.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._spec['marks']}/{name}")
        self._control.report("gone", pids=sorted({pid, *self._signalled})[:MAX_PIDS])

    def _reap(self) -> bool:
        """Collect what has ended; False where no process is left below this one."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._child:
                    self._note_exit(os.waitstatus_to_exitcode(status))
        return False

    def _note_exit(self, code: int) -> None:
        self._child = None
        self._control.report("exited", code=code if code >= 0 else None, signal=-code if code < 0 else None)
        self._stop(GRACE_S)

    def _stop(self, grace_s: float, *, term_after_s: float = 0.0) -> None:
        """Set the times of the ladder; a later word only ever shortens it."""
        now = time.monotonic()
        self._term_at = min(self._term_at, now + term_after_s)
        self._kill_at = min(self._kill_at, now + grace_s)

    def _climb(self) -> None:
        """Send what is due to every process below this one, also to those forked since the last look."""
        now = time.monotonic()
        if now < min(self._term_at, self._kill_at):
            return
        for pid in self._family():
            is_new = pid not in self._signalled
            self._signalled.add(pid)
            if now >= self._kill_at:
                send_signal(pid, signal.SIGKILL)
            elif is_new:
                send_signal(pid, signal.SIGTERM)
                send_signal(pid, signal.SIGCONT)  # a stopped process would not hear of it
            if is_new:
                self._rescan_s = _RESCAN_S[0]

    def _family(self) -> Iterator[int]:
        """Yield the processes below this one: at once those with the cookie, then any that lost it."""
        own = os.getpid()
        if self._cookie is not None:
            yield from (pid for pid in carriers(self._cookie) if pid != own)
        yield from descendants(own)

    def _wait(self) -> None:
        """Sleep until a child ends, the daemon speaks or dies, or the ladder is due."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if self._control.fd is not None:
            poll.register(self._control.fd, select.POLLIN)
        for fd, _ in poll.poll(self._timeout_ms()):
            if fd == self._wakeup:
                self._read_signals()
            else:
                self._read_orders()

    def _timeout_ms(self) -> float | None:
        now = time.monotonic()
        waits = [at - now for at in (self._term_at, self._kill_at) if at > now]
        if len(waits) < 2:
            waits.append(self._rescan_s)
            self._rescan_s = min(self._rescan_s * 2, _RESCAN_S[1])
        return None if min(waits) == inf else min(waits) * 1000 + 1

    def _read_signals(self) -> None:
        if set(os.read(self._wakeup, 4096)) - {signal.SIGCHLD}:
            self._stop(GRACE_S)

    def _read_orders(self) -> None:
        for order in self._control.read():
            interrupts = order["do"] == "interrupt" or order["interrupt"]
            if interrupts and self._child is not None:
                send_signal(self._child, signal.SIGINT)
            if order["do"] == "stop":
                self._stop(order["grace_s"], term_after_s=order["grace_s"] / 2 if interrupts else 0.0)
        if self._control.fd is None:
            self._stop(GRACE_S)


def spawn(spec: Mapping[str, Any], *, cookie: int | None) -> tuple[int, dict[str, Any] | None]:
    """Fork the child; give its pid and, where it could not become its command, the step and the errno."""
    told, telling = os.pipe()
    runner = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(spec, _steps(spec, runner, cookie), telling)
    os.close(telling)
    with os.fdopen(told, "rb") as pipe:
        failure = pipe.read()
    return pid, json.loads(failure) if failure else None


def _become(spec: Mapping[str, Any], steps: Mapping[str, Callable[[], Any]], telling: int) -> NoReturn:
    """Turn the fork into its command; exec closes ``telling`` and all else but the three streams."""
    step = "exec"
    try:
        for step, act in steps.items():  # noqa: B007 - the handler below reads it
            act()
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 - without a shell is the point
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        os.write(telling, json.dumps({"step": step, "errno": number}).encode())
    finally:
        os._exit(127)


def _steps(spec: Mapping[str, Any], runner: int, cookie: int | None) -> dict[str, Callable[[], Any]]:
    return {
        # A session of its own, so that a script's `kill 0` does not reach the runner.
        "session": os.setsid,
        "runner": lambda: _die_with(runner),
        # Before the command runs: nothing of it is ever unmarked.
        "mark": lambda: _write_mark(spec, runner, cookie),
        "cwd": lambda: os.chdir(spec["cwd"]),
        "limits": lambda: _set_limits(spec["limits"]),
        "exec": _reset_signals,
    }


def _die_with(runner: int) -> None:
    """Have the kernel kill this process when the runner dies, which may have been before the asking."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != runner:
        os._exit(127)


def _write_mark(spec: Mapping[str, Any], runner: int, cookie: int | None) -> None:
    mark = {"boot_id": boot_id(), "cookie": cookie, "purpose": spec["purpose"]}
    for name, pid in (("pid", os.getpid()), ("runner", runner)):
        stat = read_stat(pid)
        assert stat is not None
        mark |= {name: pid, f"{name}_started": stat.started}
    path = f"{spec['marks']}/{os.getpid()}"
    with open(f"{path}.tmp", "w") as file:
        json.dump(mark, file)
    os.replace(f"{path}.tmp", path)


def _set_limits(limits: Mapping[str, int]) -> None:
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (allowed, allowed))


def _reset_signals() -> None:
    """Undo what Python, or a shell that put the daemon into its background, has set to be ignored."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _take_cookie() -> int | None:
    """Choose a cookie and carry it; None where an administrator has lowered the limit."""
    hard = resource.getrlimit(_COOKIE_LIMIT)[1]
    # Below the inherited one where this runner is itself a descendant of another: a limit can only fall.
    half = (hard if hard != resource.RLIM_INFINITY else 1 << 63) // 2
    if half < MIN_COOKIE:
        return None
    cookie = half + int.from_bytes(os.urandom(8), "big") % half
    resource.setrlimit(_COOKIE_LIMIT, (cookie, cookie))
    return cookie


def _let_go_of_streams() -> None:
    """Leave the streams to the child alone, so that they end when it does."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.close(null)


def _signals_as_bytes() -> int:
    """Turn signals into bytes of a pipe, to be waited for beside the socket."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reading


def _pids() -> list[int]:
    return sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)


def _prctl(option: int, value: int) -> None:
    import ctypes  # noqa: PLC0415 -- the daemon takes names from here, and has no use for it

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main(int(sys.argv[1]))
