"""The file of the write-ahead log: its blocks are on disk before they are needed.

An ``fdatasync`` that has made its file longer waits for the journal of the file system, too: a commit takes
half as long again as one that writes where bytes were before. SQLite writes the log from its beginning after
each complete checkpoint and never looks beyond what it wrote, so zeros behind that harm nobody.

Its length is asked for by ``lseek``, never by ``stat``: on Linux 6.13 and later a file whose times were
looked at gets new ones with the next write, and ``fdatasync`` of an ext4 without a journal then writes its
inode, too (multigrain timestamps, Documentation/filesystems/multigrain-ts.rst).
"""

import os
import shutil
from pathlib import Path
from typing import Final

EXTENT: Final = 16 * 1024 * 1024
"""Bytes that the file has from the first idle moment on; a checkpoint is due when more are needed."""
_FREE_SHARE: Final = 16
"""The extent is at most this part of what the disk has free."""
_CHUNK: Final = bytes(64 * 1024)


class WalFile:
    """The log's file, as the writer looks after it. Nothing here raises: the log works in any case."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._extent = 0

    @property
    def size(self) -> int:
        """Bytes of the file; 0 where it cannot be looked at."""
        try:
            return os.lseek(self._opened(), 0, os.SEEK_END)
        except OSError:
            return 0

    def has_grown(self) -> bool:
        """Tell whether a commit needed more than there was since this was last asked or extended."""
        size = self.size
        grown = 0 < self._extent < size
        if grown:
            self._extent = size
        return grown

    def extend(self) -> None:
        """Fill the file with zeros up to its extent, where the disk has room; only while nobody commits."""
        size = self.size
        if not 0 < size < EXTENT:
            return
        try:
            if shutil.disk_usage(self._path.parent).free >= _FREE_SHARE * EXTENT:
                self._fill(size)
        except OSError:
            return
        self._extent = self.size

    def close(self) -> None:
        """Close the file; may be called twice. It drops no lock: SQLite keeps those of the log elsewhere."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _opened(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        return self._descriptor

    def _fill(self, size: int) -> None:
        descriptor = self._opened()
        for start in range(size, EXTENT, len(_CHUNK)):
            os.pwrite(descriptor, _CHUNK[: EXTENT - start], start)
        os.fsync(descriptor)
