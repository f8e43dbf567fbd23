"""The file of the write-ahead log: its blocks are on disk before they are needed.

An ``fdatasync`` that has made its file longer waits for the journal of the file system, too: a commit takes
half as long again as one that writes where bytes were before. SQLite writes the log from its beginning after
each complete checkpoint and never looks beyond what it wrote, so zeros behind that harm nobody.
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
        self._extent = 0

    @property
    def size(self) -> int:
        """Bytes of the file; 0 where it cannot be looked at."""
        try:
            return self._path.stat().st_size
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
        """Fill the file with zeros up to its extent, where the disk has room; only while nobody commits.

        Opening and closing it drops no lock: SQLite keeps the locks of the log in another file.
        """
        size = self.size
        if not 0 < size < EXTENT:
            return
        try:
            if shutil.disk_usage(self._path.parent).free >= _FREE_SHARE * EXTENT:
                self._fill(size)
        except OSError:
            return
        self._extent = self.size

    def _fill(self, size: int) -> None:
        with self._path.open("r+b", buffering=0) as file:
            for start in range(size, EXTENT, len(_CHUNK)):
                os.pwrite(file.fileno(), _CHUNK[: EXTENT - start], start)
            os.fsync(file.fileno())
