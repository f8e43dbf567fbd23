"""Ctrl-C while an answer is made: the first stops the answer, the second leaves."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from ksi_common.errors import Cancelled, KSIError


class Interrupts:
    """Catch Ctrl-C within a block, which must be run in the main thread.

    The first calls ``stop``, in the signal handler: whatever waits for the daemon goes on waiting, and so
    hears that it has stopped. Where that fails, Cancelled is raised there; the second raises
    KeyboardInterrupt.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
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
            raise KeyboardInterrupt
        self.pressed = True
        try:
            self._stop()
        except KSIError as error:
            raise Cancelled(
                f"the answer could not be stopped: {error.message}", reason="not_stopped"
            ) from error
