"""Ask for one completion and follow it to its end, whatever happens to the connection."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, cast

from ksi_client.chat.prompt import Prompt
from ksi_client.chat.steps import FINAL, Course, Step
from ksi_client.raw import RawClient, call_raw
from ksi_common.errors import DeadlineExceeded, KSIError, NotFound, Unavailable

PATIENCE_S: Final = 60.0
"""How long a daemon that has gone is waited for."""
RETRY_S: Final = 0.2
SOON_S: Final = 0.5
"""After which a stop is said to take time."""
CANCEL_S: Final = 10.0


class Asking:
    """One question. ``options``: other fields of completion:stream.

    ``timeout_s``: seconds for all of it; then the completion is stopped, and DeadlineExceeded raised.
    ``lost`` is called when the connection was lost, once however often it is tried to make it again;
    ``slow``: when a stop takes its time, from a signal handler perhaps.
    """

    def __init__(
        self,
        request_id: str,
        prompt: Prompt,
        options: Mapping[str, Any],
        *,
        timeout_s: float | None,
        lost: Callable[[], None],
        slow: Callable[[], None],
    ) -> None:
        self._id = {"request_id": request_id}
        self._prompt = prompt
        self._options = options
        self._timeout_s = timeout_s
        self._lost = lost
        self._slow = slow
        self._course = Course()
        self._begun = time.monotonic()
        self._heard = self._begun
        self._is_stopped = False

    def steps(self) -> Iterator[Step]:
        """Give each step once, the last one final; raise the KSIError that stands in its way."""
        try:
            yield from self._steps()
        except DeadlineExceeded as error:
            if self._timeout_s is None:  # it is a deadline of the daemon's own, which says which
                raise
            with suppress(KSIError):
                self.stop()
            raise self._late() from error

    def stop(self) -> None:
        """Ask for the completion to be stopped; its last step says that it has, and no more text is given.

        On a connection of its own, so that a signal handler may call it while ``steps`` waits.
        """
        self._is_stopped = True
        with suppress(NotFound):  # it is not accepted yet, and stopped as soon as it is
            try:
                call_raw("completion:cancel", self._id, timeout_s=SOON_S)
            except DeadlineExceeded:
                self._slow()
                call_raw("completion:cancel", self._id, timeout_s=CANCEL_S)

    def _steps(self) -> Iterator[Step]:
        told = -math.inf
        while True:
            try:
                yield from self._stream()
            except Unavailable as error:
                if not self._may_ask_again(error):
                    raise
            else:
                return
            if told < self._heard:
                self._lost()
                told = time.monotonic()
            self._course.begin_anew()
            # A daemon that ends refuses until it is gone, and nothing tells when that is.
            time.sleep(RETRY_S)

    def _stream(self) -> Iterator[Step]:
        patience_s = min(PATIENCE_S, self._left_s() or PATIENCE_S)
        with RawClient(connect_timeout_s=patience_s) as client, self._prompt.fields() as fields:
            data = {**self._id, **self._options, **fields}
            for item in client.stream_raw("completion:stream", data, timeout_s=self._left_s()):
                step = cast("Step", item)
                if step["type"] == "accepted":
                    self._accepted()
                new = self._course.take(step)
                if new is not None:
                    self._heard = time.monotonic()
                    if not (self._is_stopped and step["type"] == "delta"):
                        yield new
                if step["type"] in FINAL:
                    return
        raise Unavailable("the stream ended before the answer did", reason="connection_lost")

    def _accepted(self) -> None:
        self._prompt.discard()
        if self._is_stopped:
            self.stop()

    def _may_ask_again(self, error: KSIError) -> bool:
        passing = error.details.get("reason") in {"connection_lost", "shutting_down"}
        return passing and time.monotonic() - self._heard < PATIENCE_S

    def _left_s(self) -> float | None:
        if self._timeout_s is None:
            return None
        left_s = self._timeout_s - (time.monotonic() - self._begun)
        if left_s <= 0:
            raise self._late()
        return left_s

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer within {self._timeout_s:g} s", reason="no_answer")
