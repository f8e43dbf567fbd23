"""Processes by handle: a signal never reaches another one that was given the same number."""

import os
import select
import signal
from contextlib import suppress
from types import TracebackType
from typing import Self


class Process:
    """A process, ours or not. Use it as a context manager."""

    def __init__(self, pid: int) -> None:
        """Raise ProcessLookupError where there is none of that number."""
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def send(self, number: signal.Signals) -> None:
        """Signal it; nothing happens where it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False where it goes on."""
        return bool(select.select([self._handle], [], [], max(timeout_s, 0.0))[0])

    def reap(self) -> None:
        """Leave no zombie of it, once it has ended; nothing happens where it is not our child."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._handle, os.WEXITED)


def is_alive(pid: int) -> bool:
    """Tell whether a process of that number runs; it may be anybody's."""
    try:
        with suppress(PermissionError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
