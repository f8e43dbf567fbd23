"""The files of blobs: opened relative to a descriptor of their folder, through no link. These calls block."""

import errno
import fcntl
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

FOLDER: Final = "blobs"
_DRAFTS: Final = ".drafts"
"""No reference can name it: a part of a path does not begin with a dot."""

_ENTER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A named pipe would be waited for without O_NONBLOCK.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def path_of(sha256: str) -> str:
    """Give the path, below the home, of the blob with this content."""
    return f"{FOLDER}/{sha256[:2]}/{sha256[2:]}"


def prepare(home: Path) -> None:
    """Make the folders, and remove the drafts that a crash has left."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _folder(home) as root:
        _make_folder(FOLDER, root)
        os.fsync(root)
    with _folder(home, FOLDER) as blobs:
        _make_folder(_DRAFTS, blobs)
    with _folder(home, FOLDER, _DRAFTS) as drafts:
        for name in os.listdir(drafts):  # noqa: PTH208 -- pathlib takes no descriptor
            os.unlink(name, dir_fd=drafts)


def open_to_read(home: Path, path: str) -> int:
    """Open a regular file below ``home``."""
    *parents, name = path.split("/")
    with _folder(home, *parents) as parent:
        descriptor = os.open(name, _READ, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR, "not a regular file", path)
    return descriptor


def open_draft(home: Path, name: str) -> int:
    """Make a file that is not a blob yet."""
    with _folder(home, FOLDER, _DRAFTS) as drafts:
        return os.open(name, _CREATE, 0o600, dir_fd=drafts)


def discard_draft(home: Path, name: str) -> None:
    """Remove a draft that may be published, or gone."""
    with _folder(home, FOLDER, _DRAFTS) as drafts, suppress(FileNotFoundError):
        os.unlink(name, dir_fd=drafts)


def publish_draft(home: Path, name: str, sha256: str) -> None:
    """Make a synced draft the blob with this content, durably."""
    with _folder(home, FOLDER) as blobs:
        _make_folder(sha256[:2], blobs)
    with (
        _folder(home, FOLDER, _DRAFTS) as drafts,
        _folder(home, FOLDER, sha256[:2]) as folder,
        _locked(folder),
    ):
        os.rename(name, sha256[2:], src_dir_fd=drafts, dst_dir_fd=folder)
    sync_folders(home, sha256)


def touch(home: Path, sha256: str) -> bool:
    """Have a blob be as new as if it had been stored now: ``collect`` leaves it; False where it is gone."""
    try:
        with _folder(home, FOLDER, sha256[:2]) as folder, _locked(folder):
            os.utime(sha256[2:], dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def collect(home: Path, known: Collection[str], before_s: float) -> tuple[int, int]:
    """Remove the blobs that are not ``known`` and older than a time; give how many, and their bytes."""
    freed: list[int] = []
    with _folder(home, FOLDER) as blobs:
        inner = [name for name in os.listdir(blobs) if len(name) == 2]  # noqa: PTH208 -- as above
    for part in inner:
        with _folder(home, FOLDER, part) as folder:
            for name in os.listdir(folder):  # noqa: PTH208
                if path_of(part + name) not in known:
                    freed += _remove_older(folder, name, before_s)
    return len(freed), sum(freed)


def _remove_older(folder: int, name: str, before_s: float) -> list[int]:
    """Remove a file that is older than a time; give its bytes, if it was."""
    with _locked(folder):  # or who stores it once more would find it here, and it would go all the same
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if found.st_mtime >= before_s:
            return []
        os.unlink(name, dir_fd=folder)
    return [found.st_size]


def sync_folders(home: Path, sha256: str) -> None:
    """Make the name of a blob durable; costs next to nothing where it is.

    Both folders each time: that somebody else made the inner one does not mean that he has synced it.
    """
    with _folder(home, FOLDER, sha256[:2]) as folder:
        os.fsync(folder)
    with _folder(home, FOLDER) as blobs:
        os.fsync(blobs)


@contextmanager
def _folder(home: Path, *parts: str) -> Iterator[int]:
    descriptor = os.open(home, _ENTER)
    try:
        for part in parts:
            inner = os.open(part, _ENTER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: int) -> Iterator[None]:
    """Have what is done with one name stand alone, among threads and processes."""
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)


def _make_folder(name: str, parent: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
