"""What a handler raises becomes an answer; only what is a bug becomes a traceback."""

import asyncio
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

import structlog

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import Cancelled, InternalError, KSIError, OperationalError
from ksi_daemon.explaining import PluginBug
from ksi_daemon.outcomes import Endpoint, Failed, Send

log = structlog.get_logger()

FRAMES: Final = 20
"""Of a traceback, the last ones."""

RECURSIVE_FRAMES: Final = 6
"""The same, where a recursion went too deep: there are a thousand, and they say the same again and again."""

_PLUGINS, _LIBRARIES, _KSI = range(3)
_OURS = (str(Path(__file__).parent.parent), str(Path(asyncio.__file__).parent))


class ReportedError(InternalError):
    """A bug that is in the log already: passed on from call to call, it is not logged again."""


class Errors:
    """Answer errors. ``strict``: bugs are raised on, which ends the daemon (tests want that).

    ``blame`` is told of each bug: it gives the name of the plugin that handles an event, and counts. It is
    given the plugin itself where the error names it.
    ``culprit`` is asked first: it knows the plugin that a file belongs to, for that may be another's layer.
    ``owner_of`` tells what is a plugin's: a bug is placed there, not in a library that was called.
    """

    def __init__(
        self,
        blame: Callable[[str], str],
        *,
        strict: bool = False,
        culprit: Callable[[str], str | None] = lambda _: None,
        owner_of: Callable[[str], object | None] = lambda _: None,
    ) -> None:
        self._blame = blame
        self._culprit = culprit
        self._owner_of = owner_of
        self._strict = strict

    async def __call__(self, envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        """Catch everything: SystemExit or a CancelledError that nobody asked for would stop the loop."""
        try:
            await call_next(envelope, send)
        except asyncio.CancelledError as error:
            if _asked_for():
                await send(Failed(Cancelled(f"{envelope.event} was cancelled")))
                raise
            await send(Failed(self.answer(envelope, error)))
        except BaseException as error:
            await send(Failed(self.answer(envelope, error)))

    def answer(self, envelope: EventEnvelope, error: BaseException) -> KSIError:
        """Give the error to answer with; what was not expected is logged as a bug (``strict``: raised)."""
        if isinstance(error, OperationalError | ReportedError):
            return error
        known = error if isinstance(error, PluginBug) else None
        file, line = (known and known.place) or _origin(error, self._owner_of)
        plugin = self._culprit(file) or self._blame((known and known.plugin) or envelope.event)
        where = f"{Path(file).name}:{line}" if file else "unknown"
        log.error(
            "handler.crashed",
            handled=envelope.event,
            plugin=plugin,
            error=(known.message if known else f"{type(error).__name__}: {error}")[:500],
            where=where,
            exception="".join(traceback.format_exception(type(error), error, _last_frames(error))),
        )
        if self._strict:
            raise error
        event = "" if known else f" in {envelope.event}"
        return ReportedError(
            f"plugin {plugin} failed{event}: {named(error)} ({where})", hint=hint_at(error), plugin=plugin
        )


def named(error: BaseException) -> str:
    """Say what a bug is to those who asked: its kind, for its own words may hold what is not theirs."""
    return error.message if isinstance(error, PluginBug) else type(error).__name__


def hint_at(error: BaseException) -> str:
    """Say what to do about a bug: of some the sentence says everything, of others the log has more."""
    where = "tell the plugin's author" if isinstance(error, PluginBug) else "its log has the traceback"
    return f"the daemon is fine; {where}"


def _asked_for() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _last_frames(error: BaseException) -> TracebackType | None:
    last = ahead = error.__traceback__
    for _ in range(RECURSIVE_FRAMES if isinstance(error, RecursionError) else FRAMES):
        ahead = ahead.tb_next if ahead is not None else None
    while ahead is not None and last is not None:
        last, ahead = last.tb_next, ahead.tb_next
    return last


def _origin(error: BaseException, owner_of: Callable[[str], object | None]) -> tuple[str, int]:
    """Give the place nearest to the error in a plugin, or else not ours; its cause may say more than it."""
    place = ("", 0)
    seen: BaseException | None = error
    while seen is not None:
        *places, ours = _places(seen, owner_of)
        for found in places:
            if found[0]:
                return found
        place = place if place[0] else ours
        seen = seen.__cause__ or seen.__context__
    return place


def _places(error: BaseException, owner_of: Callable[[str], object | None]) -> list[tuple[str, int]]:
    """Give the last place in a plugin, in a library and in ours; ("", 0) where there is none."""
    last = dict.fromkeys((_PLUGINS, _LIBRARIES, _KSI), ("", 0))
    kinds: dict[str, int] = {}
    # By hand: there may be a thousand, and the loop waits.
    step = error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if file not in kinds:
            kinds[file] = _kind(file, owner_of)
        last[kinds[file]] = (file, step.tb_lineno)
        step = step.tb_next
    return list(last.values())


def _kind(file: str, owner_of: Callable[[str], object | None]) -> int:
    if file.startswith(_OURS):
        return _KSI
    return _LIBRARIES if owner_of(file) is None else _PLUGINS
