"""What a handler raises becomes an answer; only what is a bug becomes a traceback."""

import asyncio
import traceback
from collections.abc import Callable
from pathlib import Path

import structlog

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import Cancelled, InternalError, KSIError, OperationalError
from ksi_daemon.outcomes import Endpoint, Failed, Send

log = structlog.get_logger()

_OURS = (str(Path(__file__).parent.parent), str(Path(asyncio.__file__).parent))


class ReportedError(InternalError):
    """A bug that is in the log already: passed on from call to call, it is not logged again."""


class Errors:
    """Answer errors. ``strict``: bugs are raised on, which ends the daemon (tests want that).

    ``blame`` is told of each bug: it gives the name of the plugin that handles an event, and counts.
    ``culprit`` is asked first: it knows the plugin that a file belongs to, for that may be another's layer.
    """

    def __init__(
        self,
        blame: Callable[[str], str],
        *,
        strict: bool = False,
        culprit: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._blame = blame
        self._culprit = culprit
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
        file, line = _origin(error)
        where = f"{Path(file).name}:{line}" if file else "unknown"
        plugin = self._culprit(file) or self._blame(envelope.event)
        log.error(
            "handler.crashed",
            handled=envelope.event,
            plugin=plugin,
            error=f"{type(error).__name__}: {error}"[:500],
            where=where,
            exception="".join(traceback.format_exception(error, limit=-20)),
        )
        if self._strict:
            raise error
        return ReportedError(
            f"plugin {plugin} failed in {envelope.event}: {type(error).__name__} ({where})",
            hint="the daemon is fine; its log has the traceback",
            plugin=plugin,
        )


def _asked_for() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _origin(error: BaseException) -> tuple[str, int]:
    """Give the place that is nearest to the error and not ours; what it was made of may say more than it."""
    place = ("", 0)
    seen: BaseException | None = error
    while seen is not None:
        for frame in reversed(traceback.extract_tb(seen.__traceback__)):
            here = (frame.filename, frame.lineno or 0)
            if not frame.filename.startswith(_OURS):
                return here
            place = place if place[0] else here
        seen = seen.__cause__ or seen.__context__
    return place
