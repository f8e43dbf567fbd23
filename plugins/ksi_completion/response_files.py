"""The files of answers, as bytes: they grow at their end, and are cut where no row knows what is beyond.

They are opened relative to a descriptor of their folder and through no link. All calls block.
"""

import errno
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PARTS: Final = ("logs", "responses")
LATEST: Final = "latest.jsonl"

_CHUNK: Final = 256 * 1024
_DRAFT: Final = ".latest.jsonl"
"""No session has this file: names of sessions do not begin with a dot."""

_ENTER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A named pipe would be waited for without O_NONBLOCK.
_GROW: Final = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ResponseFile:
    """One file of answers, open from a write to its sync; closed then, or when nobody holds it any more."""

    def __init__(self, folder: "ResponseFolder", name: str, descriptor: int, size: int) -> None:
        self._folder = folder
        self._name = name
        self._descriptor = descriptor
        self.size = size
        """Its bytes."""
        self._close = weakref.finalize(self, os.close, descriptor)
        self._error: OSError | None = None
        self._is_named = False
        """Its name in the folder is on disk."""

    def settle(self, end: int, coming: bytes = b"") -> tuple[int, int]:
        """Make it end where a line can follow: at ``end``, or before that where bytes are lost.

        Gives where that is, and how many bytes were moved to the torn file. ``coming``: what is to be
        written there; it is not kept if it stands there already, of a write that no row came to name.
        """
        kept = self._last_line_end(min(end, self.size))
        self._is_named = kept > 0
        beyond = self.size - kept
        if beyond == len(coming) and os.pread(self._descriptor, beyond, kept) == coming:
            self._truncate(kept)
            return kept, 0
        self.cut(kept)
        return kept, beyond

    def cut(self, position: int) -> None:
        """Move what is beyond ``position`` to the end of the torn file, on disk, and cut it off."""
        if self.size > position:
            with self._folder.torn(self._name) as torn:
                last = b""
                for chunk in self._chunks(position):
                    _write(torn, chunk)
                    last = chunk
                if not last.endswith(b"\n"):
                    _write(torn, b"\n")
            self._truncate(position)

    def append(self, data: bytes) -> None:
        """Write ``data`` at the end, whole or not at all; it is not on disk before ``sync``."""
        try:
            _write(self._descriptor, data)
        except OSError:
            with suppress(OSError):  # else the next one settles it
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(data)

    def lines(self, start: int, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the lines from ``start``; of a longer one a part that does not end as a line does."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(start)
            yield from iter(lambda: file.readline(max_bytes), b"")

    def sync(self) -> None:
        """Have what was written on disk; raise OSError where it is not, also when asked again.

        Asked again after a failure, the system might say that all is well although the bytes are gone.
        """
        if self._error is not None:
            raise self._error
        if self._close.alive:
            try:
                self._sync()
            except OSError as error:
                self._error = error
                raise
            finally:
                self._close()

    def _sync(self) -> None:
        os.fdatasync(self._descriptor)
        if not self._is_named:
            self._folder.sync()
        if os.fstat(self._descriptor).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "removed before it was on disk", self._name)

    def _truncate(self, position: int) -> None:
        os.ftruncate(self._descriptor, position)
        self.size = position

    def _last_line_end(self, position: int) -> int:
        """Give ``position``, or where the last line before it ends, if no line ends there."""
        while position:
            start = max(0, position - _CHUNK)
            newline = os.pread(self._descriptor, position - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
        return 0

    def _chunks(self, position: int) -> Iterator[bytes]:
        while chunk := os.pread(self._descriptor, _CHUNK, position):
            yield chunk
            position += len(chunk)


class ResponseFolder:
    """The folder of the files of answers, below a home."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._latest = ""

    def open(self, folder: int, name: str, *, make: bool) -> ResponseFile:
        """Open a file of the folder ``entered``, a new one where there is none and ``make`` says so."""
        descriptor = _open(name, folder, make=make)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise OSError(errno.EISDIR, "not a regular file", name)
        return ResponseFile(self, name, descriptor, status.st_size)

    def sync(self) -> None:
        """Have the names of its files on disk."""
        with self.entered() as folder:
            os.fsync(folder)

    @contextmanager
    def torn(self, name: str) -> Iterator[int]:
        """Open the file that takes what was cut off ``name``; it is on disk at the end."""
        with self.entered() as folder:
            torn = os.open(f"{name}.torn", _GROW | os.O_CREAT, 0o600, dir_fd=folder)
            try:
                yield torn
                os.fdatasync(torn)
            finally:
                os.close(torn)
            os.fsync(folder)

    def point_to(self, name: str) -> None:
        """Let ``latest.jsonl`` be a link to ``name``, as well as that can be done."""
        if name in (self._latest, LATEST):
            return
        with suppress(OSError), self.entered() as folder:
            if not _is_link_or_missing(LATEST, folder):
                return  # it is the file of a session of that name
            with suppress(FileNotFoundError):
                os.unlink(_DRAFT, dir_fd=folder)
            os.symlink(name, _DRAFT, dir_fd=folder)
            os.rename(_DRAFT, LATEST, src_dir_fd=folder, dst_dir_fd=folder)
            self._latest = name

    @contextmanager
    def entered(self, *, make: bool = False) -> Iterator[int]:
        """Give a descriptor of the folder, as it is now; ``make`` it where there is none."""
        descriptor = os.open(self._home, _ENTER)
        try:
            for part in PARTS:
                inner = _enter(part, descriptor, make=make)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)


def _open(name: str, folder: int, *, make: bool) -> int:
    flags = _GROW | os.O_CREAT if make else _GROW
    try:
        return os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.ELOOP or name != LATEST or not make:
            raise
    os.unlink(name, dir_fd=folder)  # a session has the name of our link, and goes before it
    return os.open(name, flags, 0o600, dir_fd=folder)


def _is_link_or_missing(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


def _enter(name: str, parent: int, *, make: bool) -> int:
    try:
        return os.open(name, _ENTER | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
        os.fsync(parent)
    return os.open(name, _ENTER | os.O_NOFOLLOW, dir_fd=parent)


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
