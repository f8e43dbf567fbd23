"""One daemon to a home: a lock that ends with the process, however that ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ksi_common.errors import AlreadyExists, FailedPrecondition
from ksi_common.paths import Paths


class HomeLocked(AlreadyExists):
    """Another daemon has the home."""


@contextmanager
def home_lock(paths: Paths) -> Iterator[bool]:
    """Hold the home; give whether the daemon before ended without cleaning up. Raises HomeLocked.

    Taken before the socket is touched: asyncio would take a live daemon's socket without a word.
    """
    _refuse_what_is_no_text(paths)
    try:
        for folder in (paths.home, paths.run):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPrecondition(f"cannot use {paths.home}: {error.strerror}", hint="set KSI_HOME") from error
    held = [descriptor]
    # A process that a plugin forks off, as a pool of them, would hold the home for as long as it lives.
    os.register_at_fork(after_in_child=partial(_close, held))
    try:
        _lock(descriptor, paths)
        recovered = paths.pid_file.exists()
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            paths.pid_file.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise FailedPrecondition(f"cannot write in {paths.run}: {error.strerror}") from error
        try:
            yield recovered
        finally:
            paths.pid_file.unlink(missing_ok=True)
    finally:
        _close(held)


def _refuse_what_is_no_text(paths: Paths) -> None:
    try:
        str(paths.home).encode()
    except UnicodeEncodeError:  # no JSON could hold a path of it: no answer, no line of the log
        raise FailedPrecondition(
            f"the path of the home is no UTF-8: {os.fsencode(paths.home)!r}", hint="set KSI_HOME"
        ) from None


def _close(held: list[int]) -> None:
    while held:
        os.close(held.pop())


def _lock(descriptor: int, paths: Paths) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise HomeLocked(
            f"another KSI (pid {holder}) uses {paths.home}", reason="home_locked", pid=holder
        ) from None
