"""A thread that looks whether the loop turns, and says who holds it.

Nothing is measured on the way of an event. Twenty times a second the thread looks where the loop's thread
is: waiting, or at work. At work it posts a callback; while that does not come, the loop is held, and whoever
stands in the stack is named. No look counts for more than a second: a machine that slept has held nothing.
"""

import asyncio
import inspect
import linecache
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from types import CodeType, FrameType, TracebackType
from typing import Final, Self

from ksi_common.records import record

TICK_S: Final = 0.05
LONGEST_S: Final = 1.0
"""What may pass between two looks and count."""
HELD_S: Final = 0.25
"""From here on a loop is held, not busy."""


@record
class Place:
    """Where the loop's thread stands: of all frames the innermost that belongs to a plugin, else to us."""

    file: str
    line: int
    function: str
    plugin: str | None = None

    @property
    def where(self) -> str:
        """Name it for people."""
        return f"{Path(self.file).name}:{self.line}"

    @property
    def code(self) -> str:
        """Give the line of code."""
        return linecache.getline(self.file, self.line).strip()[:120]


class Watchdog:
    """Watch the loop that it is made on. ``held`` is called in the thread, ``resumed`` on the loop.

    ``owner`` gives the plugin that a file belongs to, None where that is none, or a built-in one.
    """

    def __init__(
        self,
        owner: Callable[[str], str | None],
        held: Callable[[Place, float], None],
        resumed: Callable[[Place, float], None],
    ) -> None:
        self._owner = owner
        self._held = held
        self._resumed = resumed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ksi-watchdog", daemon=True)
        self._posted = 0
        self._answered = 0
        self._held_s = 0.0
        self._place: Place | None = None
        self._told = False

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._idle = set(_waiting_codes(sys._getframe()))  # noqa: SLF001 -- the documented way to a frame
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        looked = monotonic()
        while not self._stopping.wait(TICK_S):
            now = monotonic()
            # Code that keeps the interpreter's lock keeps this thread, too: its time counts, up to a point.
            passed_s, looked = min(now - looked, LONGEST_S), now
            try:
                self._look(passed_s)
            except RuntimeError:  # the loop is closed
                return

    def _look(self, passed_s: float) -> None:
        if self._posted != self._answered:
            self._held_s += passed_s
            place = self._find()
            if place is not None and (self._place is None or place.plugin is not None):
                self._place = place
            if self._held_s >= HELD_S and self._place is not None and not self._told:
                self._told = True
                self._held(self._place, self._held_s)
            return
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001
        if frame is not None and frame.f_code not in self._idle:
            self._held_s, self._place, self._told = 0.0, None, False
            self._posted += 1
            self._loop.call_soon_threadsafe(self._answer, self._posted)

    def _answer(self, number: int) -> None:
        # On the loop: whatever held it is over.
        held_s, place, told = self._held_s, self._place, self._told
        self._answered = number
        if place is not None and held_s >= HELD_S:
            if not told:
                self._held(place, held_s)
            self._resumed(place, held_s)

    def _find(self) -> Place | None:
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001
        if frame is None or frame.f_code in self._idle:
            return None
        fallback = place_of(frame, None)
        for each in _outwards(frame):
            plugin = self._owner(each.f_code.co_filename)
            if plugin is not None:
                return place_of(each, plugin)
        return fallback


def place_of(frame: FrameType, plugin: str | None) -> Place:
    """Say where a frame stands."""
    code = frame.f_code
    line = frame.f_lineno or code.co_firstlineno  # it has none between two lines (Python 3.11)
    return Place(code.co_filename, line, code.co_name, plugin)


def waiting_at(task: "asyncio.Task[object]") -> Sequence[FrameType]:
    """Give the frames that a suspended task stands in, the innermost first."""
    awaited: object = task.get_coro()
    frames: list[FrameType] = []
    while awaited is not None:
        inner = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        inner = inner or getattr(awaited, "ag_frame", None)
        if inner is None:
            break
        frames.insert(0, inner)
        awaited = (
            getattr(awaited, "cr_await", None)
            or getattr(awaited, "gi_yieldfrom", None)
            or getattr(awaited, "ag_await", None)
            or inner.f_locals.get("awaitable")  # what is driven by hand, as the breadcrumb does
        )
    return frames


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _waiting_codes(frame: FrameType) -> Iterator[CodeType]:
    """Give the code that is innermost while the loop waits: all below its callbacks, and the selector."""
    import selectors  # noqa: PLC0415 -- uvloop's loop needs none

    for kind in vars(selectors).values():
        select = getattr(kind, "select", None)
        if inspect.isfunction(select):
            yield select.__code__
    frames = list(_outwards(frame))
    callbacks = [n for n, each in enumerate(frames) if each.f_code.co_flags & inspect.CO_COROUTINE]
    first = max(callbacks, default=-1) + 1
    yield from (each.f_code for each in frames[first:] if each.f_code.co_name != "_run")
