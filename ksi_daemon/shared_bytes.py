"""Bytes that many sockets get at once: put into memory once, and into each socket's queue without a copy.

``sendfile`` hands the pages of a file to a Unix socket as they are (Linux 6.5 and later: MSG_SPLICE_PAGES in
net/unix/af_unix.c; before that it copies them). What was handed over keeps its pages until it is read, so the
file may be closed at once.
"""

import os
from typing import Final

WORTHWHILE: Final = 16 * 1024
"""Bytes from which on a copy costs more than what is done instead of it; ``write`` is quicker below."""
MAX_FILES: Final = 16
"""Runs of bytes that are shared at a time: subscribers may all have ids, and so bytes, of their own."""


class SharedBytes:
    """Files in memory, one for each run of bytes that several get. To be closed.

    What only one gets would be copied all the same, and what exceeds ``MAX_FILES`` is written.
    """

    __slots__ = ("_files", "_seen")

    def __init__(self) -> None:
        # By identity: subscribers share the object, and to hash it would cost more than to copy it.
        self._files: dict[int, int | None] = {}
        self._seen: dict[int, bytes] = {}

    def close(self) -> None:
        """Close the files; what was sent is not affected."""
        files, self._files = self._files, {}
        for file in files.values():
            if file is not None:
                os.close(file)

    def send(self, data: bytes, socket: int) -> int:
        """Send what a socket takes of ``data`` now, and give how much that was; 0: it is to be written.

        Never waits, never raises: what is wrong with the socket is found out by whoever writes the rest.
        """
        if len(data) < WORTHWHILE:
            return 0
        file = self._file(data)
        if file is None:
            return 0
        try:
            return os.sendfile(socket, file, 0, len(data))
        except OSError:
            return 0

    def _file(self, data: bytes) -> int | None:
        run = id(data)
        if run in self._files:
            return self._files[run]
        if run not in self._seen:
            self._seen[run] = data
            return None
        if len(self._files) >= MAX_FILES:
            return None
        file = self._files[run] = _file_of(data)
        return file


def _file_of(data: bytes) -> int | None:
    """Make a file in memory; None where the system has none to give."""
    try:
        file = os.memfd_create("ksi-shared", os.MFD_CLOEXEC)
    except (OSError, AttributeError):
        return None
    try:
        whole = os.write(file, data) == len(data)
    except OSError:
        whole = False
    if whole:
        return file
    os.close(file)
    return None
