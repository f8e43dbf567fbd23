"""A program on a terminal of its own, as a person has it."""

import codecs
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

PATIENCE_S: Final = 60.0
"""A net for a loaded machine, never a measure."""
ESCAPES: Final = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")

# Its first act is to take the terminal: then Ctrl-C is a signal, as it is for a person.
_TAKE: Final = (
    "import fcntl, os, sys, termios;fcntl.ioctl(0, termios.TIOCSCTTY, 0);os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """Types, and reads what is on the screen. ``size``: rows and columns."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], *, size: tuple[int, int] = (24, 200)
    ) -> None:
        self._master, slave = os.openpty()
        self.resize(*size)
        self._raw = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._seen = 0
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _TAKE, *command],
            env={"TERM": "xterm", **environ},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def raw(self) -> str:
        """All that was written, escapes included."""
        return self._raw

    @property
    def text(self) -> str:
        """All that was written, as it is read."""
        return ESCAPES.sub("", self._raw).replace("\r\n", "\n").replace("\r", "")

    def type(self, text: str) -> None:
        """Press keys; \\x03 is Ctrl-C, \\x04 is Ctrl-D."""
        os.write(self._master, text.encode())

    def enter(self, line: str) -> None:
        """Type a line."""
        self.type(line + "\r")

    def expect(self, text: str) -> None:
        """Wait until this is read, behind what was expected before."""
        self.expect_match(re.escape(text))

    def expect_match(self, pattern: str) -> None:
        """Wait until something like this is read, behind what was expected before."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := re.compile(pattern).search(self.text, self._seen)) is None:
            assert self._read(deadline), f"{pattern!r} did not come:\n{self.text[self._seen :]}"
        self._seen = found.end()

    def wait(self) -> int:
        """Read to the end; give the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.text[self._seen :]}") from None

    def resize(self, rows: int, columns: int) -> None:
        """Change the size, of which the program is told."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def _read(self, deadline: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # nobody has the other end any more
            return False
        self._raw += self._decoder.decode(data)
        return bool(data)
