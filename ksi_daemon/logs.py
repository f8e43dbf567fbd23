"""The daemon's log: JSON lines, written beside the loop, with the correlation id unasked."""

import logging
import logging.handlers
import os
import queue
import re
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import structlog

from ksi_common.envelope import current_envelope
from ksi_daemon.settings import LogSettings

_SECRET = re.compile(r"(api_?key|secret|password|authorization|credential|(^|_)token$)", re.IGNORECASE)


@contextmanager
def logging_to(path: Path, settings: LogSettings, *, echo: bool = False) -> Iterator[None]:
    """Write the log to ``path``, rotated, for as long as the block runs; ``echo``: to stderr as well.

    Lines are rendered where they are logged and written by a thread of their own: a slow disk stops nobody.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = _LogFile(
        path,
        maxBytes=settings.max_bytes,
        backupCount=settings.files,
        encoding="utf-8",
        errors="backslashreplace",  # a lone surrogate is no reason to lose a line
    )
    sinks: list[logging.Handler] = [file]
    if echo:
        sinks.append(logging.StreamHandler())
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    entry = _Rendered(lines)
    entry.setFormatter(_formatter())
    listener = logging.handlers.QueueListener(lines, *sinks)
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    root.handlers[:] = [entry]
    root.setLevel(settings.level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    _configure()
    listener.start()
    shown, warnings.showwarning = warnings.showwarning, _log_warning
    try:
        yield
    finally:
        warnings.showwarning = shown
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        listener.stop()
        for sink in sinks:
            with suppress(OSError):  # a full disk has no room for the last lines: that fails nothing else
                sink.close()
        structlog.reset_defaults()


def set_level(level: str) -> None:
    """Write what matters as much as this, or more, from now on."""
    logging.getLogger().setLevel(level.upper())


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Take what Python warns of, as a coroutine that nobody awaited: it is a bug that says nothing else."""
    del file, line
    structlog.get_logger().warning(
        "python.warning", warning=f"{category.__name__}: {message}", where=f"{filename}:{lineno}"
    )


class _LogFile(logging.handlers.RotatingFileHandler):
    """Goes on where somebody has taken the file away, as logrotate does, and where there is room again."""

    _lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, to the file that is at the path now."""
        lost = self._lost
        self._emit(record)
        if lost and lost == self._lost:
            self._lost = 0
            structlog.get_logger().warning("log.lines_lost", lines=lost)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- logging's name
        """Say that lines are lost, but not of each of them: logging would print a traceback a line."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if not self._lost:
            said = f"{self.baseFilename} cannot be written: {error.strerror}; log lines are lost"
            with suppress(OSError):  # what stderr is written to may be as full
                print(said, file=sys.stderr)  # noqa: T201 -- the log has no room for it
        self._lost += 1

    def _emit(self, record: logging.LogRecord) -> None:
        stream = self.stream
        if stream is not None and not _is_at(self.baseFilename, stream.fileno()):
            with suppress(OSError):  # its folder may be gone, too
                self.stream = self._open()
                stream.close()
        super().emit(record)


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), Path(path).stat())
    except OSError:  # whatever it is, it must not end the thread that writes
        return False


class _Rendered(logging.handlers.QueueHandler):
    """Render a record where it is made: the context it needs is there, not in the thread that writes."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.msg = self.format(record)
        record.args = record.exc_info = record.exc_text = record.stack_info = None
        return record


def _shared() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_envelope,
        structlog.processors.format_exc_info,
        _redact,
    ]


def _configure() -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _formatter() -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_shared(),
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ],
    )


def _add_envelope(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    envelope = current_envelope()
    if envelope is not None:
        line.setdefault("correlation_id", envelope.correlation_id)
        line.setdefault("event_id", envelope.event_id)
        line.setdefault("request", envelope.event)
        if envelope.traceparent is not None:
            line.setdefault("traceparent", envelope.traceparent)
    return line


def _redact(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in line:
        if _SECRET.search(name):
            line[name] = "[redacted]"
    return line
