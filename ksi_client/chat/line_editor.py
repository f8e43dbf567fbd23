"""The prompt of a conversation: editing, history and completion, by readline where Python has it."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

HISTORY: Final = 1000
"""Lines that are kept."""
LOOK_S: Final = 0.1


class LineEditor:
    """Asks for lines. ``history``: the file that keeps them, its owner's alone; ``words``: to complete."""

    def __init__(self, history: Path, words: Sequence[str]) -> None:
        self._history = history
        self._words = words
        self._readline: Any = import_module("readline") if find_spec("readline") else None

    def __enter__(self) -> Self:
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        if self._readline is not None:
            self._readline.set_completer_delims(" ")
            self._readline.set_completer(self._complete)
            self._readline.parse_and_bind("tab: complete")
            self._read_history()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._readline is not None:
            self._write_history()

    def ask(self, prompt: str) -> str:
        """Give a line; raise EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        with _interrupts_are_seen():
            return input(prompt)

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
