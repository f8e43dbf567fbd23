"""What the runners wrote down of their children, and the end of those whose runner was killed."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Final

from ksi_common.records import record
from ksi_daemon import runner

KILL_S: Final = 5.0
"""How long SIGKILL may take; longer is a process that is stuck in the kernel, or another user's."""

_LOOK_AGAIN_S: Final = 0.005


@record
class Reaped:
    """What a killed runner had left; ``pids_left`` outlived even SIGKILL, and stay marked."""

    pid: int
    purpose: str
    pids_gone: tuple[int, ...]
    pids_left: tuple[int, ...]


@record
class Mark:
    """What was written of a child before its command ran; start times are in clock ticks since boot.

    ValueError for what no runner writes: every process is below pid 1, and carries the cookie -1.
    """

    pid: int
    pid_started: int
    runner: int
    runner_started: int
    cookie: int | None
    boot_id: str
    purpose: str

    def __post_init__(self) -> None:
        if min(self.pid, self.runner) <= 1:
            raise ValueError(f"no runner has a child {self.pid}, nor is one {self.runner}")
        if self.cookie is not None and self.cookie < runner.MIN_COOKIE:
            raise ValueError(f"no runner has the cookie {self.cookie}")

    def survivors(self) -> set[int]:
        """Find what lives of the child, its runner, and all below them; never this process or its parents."""
        if self.boot_id != runner.boot_id():
            return set()
        found = set(self._roots())
        found.update(*map(runner.descendants, tuple(found)))
        if self.cookie is not None:
            found.update(runner.carriers(self.cookie))
        return {pid for pid in found.difference(_lineage()) if _is_alive(pid)}

    def kill(self) -> Reaped:
        """Kill until nothing survives, the runner last: up to then it catches what is orphaned."""
        deadline = time.monotonic() + KILL_S
        killed: set[int] = set()
        while (alive := self.survivors()) and time.monotonic() < deadline:
            killed |= alive
            for pid in alive - {self.runner} or alive:
                runner.send_signal(pid, SIGKILL)
            time.sleep(_LOOK_AGAIN_S)
        return Reaped(self.pid, self.purpose, tuple(sorted(killed - alive)), tuple(sorted(alive)))

    def _roots(self) -> Iterator[int]:
        for pid, started in ((self.pid, self.pid_started), (self.runner, self.runner_started)):
            stat = runner.read_stat(pid)
            # The start time, because the pid may be another process's by now.
            if stat is not None and stat.started == started:
                yield pid


def read_mark(path: Path) -> Mark | None:
    """Read a mark; None where it is gone, damaged, or was never finished."""
    try:
        return Mark(**json.loads(path.read_bytes()))
    except (ValueError, TypeError, FileNotFoundError):
        return None


def reap_all(folder: Path) -> tuple[Reaped, ...]:
    """Kill what survives under any mark, and remove the marks; list those with survivors."""
    reaped = []
    for path in sorted(folder.iterdir()):
        found = _reap(path)
        if found and (found.pids_gone or found.pids_left):
            reaped.append(found)
    return tuple(reaped)


def reap_runner(folder: Path, pid: int) -> tuple[Reaped, ...]:
    """Do the same for the one runner ``pid``, which has ended; list its child even where it left nothing."""
    marks = [(path, read_mark(path)) for path in folder.iterdir()]
    found = [_reap(path) for path, mark in marks if mark and mark.runner == pid]
    return tuple(reaped for reaped in found if reaped)


def _reap(path: Path) -> Reaped | None:
    mark = read_mark(path)
    reaped = mark.kill() if mark else None
    if reaped is None or not reaped.pids_left:
        path.unlink(missing_ok=True)
    return reaped


def _lineage() -> Iterator[int]:
    """Yield this process and its parents: a daemon may be started from below a child of an earlier one."""
    pid = os.getpid()
    while stat := runner.read_stat(pid):
        yield pid
        pid = stat.parent


def _is_alive(pid: int) -> bool:
    stat = runner.read_stat(pid)
    return stat is not None and stat.state not in {"Z", "X"}
