"""Ctrl-C while an answer is made: the first stops the answer, the second leaves."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final, Self

from ksi_common.errors import Cancelled, KSIError

TOGETHER_S: Final = 0.2


class Interrupts:
    """Catch Ctrl-C within a block, which must be run in the main thread.

    One key press may reach a process twice, from the terminal and from a program above it: what comes within
    ``TOGETHER_S`` counts once.
    The first calls ``stop``, in the signal handler: whatever waits for the daemon goes on waiting, and so
    hears that it has stopped. Where that fails, Cancelled is raised there; the second raises
    KeyboardInterrupt.
    """

    def __init__(self, stop: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self._first = 0.0
        self.pressed = False
        """Somebody wished to stop."""

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (a handler's signature)
        if self.pressed:
            if self._clock() - self._first >= TOGETHER_S:
                raise KeyboardInterrupt
            return
        self.pressed = True
        self._first = self._clock()
        try:
            self._stop()
        except KSIError as error:
            raise Cancelled(
                f"the answer could not be stopped: {error.message}", reason="not_stopped"
            ) from error
