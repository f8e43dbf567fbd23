"""The prompt of a conversation: editing, history and completion, by readline where Python has it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

HISTORY: Final = 1000
"""Lines that are kept."""
LOOK_S: Final = 0.1
DUMB: Final = "dumb"
BREAKING: Final = 0x801
"""The first version of readline that breaks the line at Ctrl-D, where the terminal marks what is pasted."""


class _Stopped(Exception):
    """Ctrl-Z was pressed. ``unsent``: the line so far."""

    def __init__(self, unsent: str) -> None:
        super().__init__(unsent)
        self.unsent = unsent


class LineEditor:
    """Asks for lines. ``history``: the file that keeps them, its owner's alone; ``words``: to complete."""

    def __init__(self, history: Path, words: Sequence[str]) -> None:
        self._history = history
        self._words = words
        self._readline: Any = import_module("readline") if find_spec("readline") else None
        self._breaks_line = False

    def __enter__(self) -> Self:
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        if self._readline is not None:
            self._readline.set_completer_delims(" ")
            self._readline.set_completer(self._complete)
            self._readline.parse_and_bind("tab: complete")
            if os.environ.get("TERM", DUMB) != DUMB:  # what is pasted is one question, whatever its lines
                self._readline.parse_and_bind("set enable-bracketed-paste on")
                self._breaks_line = getattr(self._readline, "_READLINE_VERSION", 0) >= BREAKING
            self._read_history()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._readline is not None:
            self._write_history()

    def ask(self, prompt: str) -> str:
        """Give a line; raise EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C, SystemExit at SIGTERM.

        What is written next is on a line of its own, whichever it is.
        """
        try:
            with _interrupts_are_seen():
                if self._readline is None:
                    return input(prompt)
                with _handling({signal.SIGTERM: _end, signal.SIGHUP: _end}):
                    return self._ask(prompt)
        except EOFError:
            if not self._breaks_line:
                print()  # noqa: T201
            raise
        except (KeyboardInterrupt, SystemExit):
            print()  # noqa: T201
            raise

    def _ask(self, prompt: str) -> str:
        unsent = ""
        while True:
            self._readline.set_startup_hook(partial(self._readline.insert_text, unsent))
            try:
                with _handling({signal.SIGTSTP: self._stop}):
                    return input(prompt)
            except _Stopped as stopped:
                unsent = stopped.unsent
                os.kill(os.getpid(), signal.SIGTSTP)  # returns at fg
            finally:
                self._readline.set_startup_hook()

    def _stop(self, number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG002  (a handler's signature)
        raise _Stopped(self._readline.get_line_buffer())

    def _read_history(self) -> None:
        try:
            self._readline.read_history_file(self._history)
        except OSError:
            self._readline.clear_history()

    def _write_history(self) -> None:
        self._readline.set_history_length(HISTORY)
        try:
            self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._history, os.O_WRONLY | os.O_CREAT, 0o600))
            self._history.chmod(0o600)
            self._readline.write_history_file(self._history)
        except OSError:
            # It is a convenience, and a full disk is reported where it matters.
            return

    def _complete(self, text: str, state: int) -> str | None:
        fitting = [word for word in self._words if word.startswith(text)] if text.startswith("/") else []
        return fitting[state] if state < len(fitting) else None


@contextmanager
def _interrupts_are_seen() -> Iterator[None]:
    """Wake the main thread every LOOK_S seconds, so that it sees a Ctrl-C that came just before it waited.

    CPython's readline looks for signals only where one breaks off its select(): a Ctrl-C between the prompt
    and the select would be heard at the next key.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _handling(wanted: Mapping[signal.Signals, Callable[[int, FrameType | None], NoReturn]]) -> Iterator[None]:
    """Handle signals that nobody ignores.

    CPython keeps readline from it: the terminal's next owner would have one that echoes nothing and ends no
    line. An exception leaves input(), which hands the terminal back.
    """
    ours = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, wanted[number])
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  (a handler's signature)
    raise SystemExit(128 + number)
