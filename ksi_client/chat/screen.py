"""The terminal, or the pipes, that a chat writes to."""

import os
from collections.abc import Mapping
from typing import Final, TextIO

from ksi_client.cli.invocation import wants_color
from ksi_client.cli.safety import one_line, visible

DIM: Final = "\x1b[2m"
BOLD: Final = "\x1b[1m"
PLAIN: Final = "\x1b[0m"


class Screen:
    """Answers go to ``out``, and what is said about them to ``err``. Everything is written at once."""

    def __init__(self, out: TextIO, err: TextIO, environ: Mapping[str, str]) -> None:
        self._out = out
        self._err = err
        self._out_color = wants_color(environ, is_terminal=out.isatty())
        self._err_color = wants_color(environ, is_terminal=err.isatty())
        self.is_terminal = out.isatty()
        """Somebody reads what goes to ``out`` as it comes."""
        self.notes_are_read = err.isatty()
        self._within_line = False

    def say(self, text: str) -> None:
        """Write what a model said: on a terminal its control characters are shown, not obeyed."""
        self.write(visible(text.replace("\r", "")) if self.is_terminal else text)

    def write(self, text: str) -> None:
        """Write text of ours."""
        if text:
            self._out.write(text)
            self._out.flush()
            self._within_line = not text.endswith("\n")

    def end_line(self) -> None:
        """Begin a new line, unless one has just begun."""
        if self._within_line:
            self.write("\n")

    def note(self, text: str) -> None:
        """Say something about an answer, on a line of its own."""
        if self.is_terminal:
            self.end_line()
        line = one_line(text)
        self._err.write(f"{DIM}{line}{PLAIN}\n" if self._err_color else f"{line}\n")
        self._err.flush()

    def note_from_handler(self, text: str) -> None:
        """Say something in the middle of whatever is being written: a signal handler may not use a stream."""
        os.write(self._err.fileno(), f"\n{text}\n".encode())
        self._within_line = False

    def complain(self, lines: list[str]) -> None:
        """Say what went wrong."""
        if self.is_terminal:
            self.end_line()
        self._err.write("".join(f"{line}\n" for line in lines))
        self._err.flush()

    def dim(self, text: str) -> str:
        """Give text that is less important, for ``write``."""
        return f"{DIM}{text}{PLAIN}" if self._out_color else text

    def bold(self, text: str) -> str:
        """Give text that is more important, for ``write``."""
        return f"{BOLD}{text}{PLAIN}" if self._out_color else text

    def prompt(self, text: str) -> str:
        """Give a prompt for readline, which must be told what takes no room."""
        return f"\001{BOLD}\002{text}\001{PLAIN}\002" if self._out_color else text
