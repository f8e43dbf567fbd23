"""Which plugin's code is running: written where it outlives the process, for the supervisor above it.

A crash of the process (a segmentation fault, ``os._exit``) does not say who did it. While foreign code runs,
its plugin's name stands in a small file that is mapped into memory: a mark costs two stores, not a write.
The file exists only while the daemon runs; whoever finds it later knows who was at work.
"""

import mmap
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from ksi_common.envelope import EventEnvelope
from ksi_daemon.outcomes import Begin, Endpoint, Send

T = TypeVar("T")

SIZE: Final = 128
_NOBODY: Final = bytes(SIZE)


class Breadcrumb:
    """The mark of one daemon. Outside the block, marking does nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None

    def __enter__(self) -> Self:
        self._path.write_bytes(_NOBODY)
        with self._path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
        self._path.unlink(missing_ok=True)

    def during(self, plugin: str, action: Callable[[], T]) -> T:
        """Run ``action``, which is that plugin's code."""
        mark = _mark(plugin)
        self._write(mark)
        try:
            return action()
        finally:
            self._write(_NOBODY)

    def before(self, plugin: str, begin: Begin) -> Begin:
        """Mark what a handler does at once."""
        return lambda envelope: self.during(plugin, lambda: begin(envelope))

    def around(self, plugin: str, endpoint: Endpoint) -> Endpoint:
        """Mark every step of ``endpoint`` that runs, and nothing while it waits: others run then."""
        mark = _mark(plugin)

        async def marked(envelope: EventEnvelope, send: Send) -> None:
            await self._steps(mark, endpoint(envelope, send))

        return marked

    @types.coroutine
    def _steps(self, mark: bytes, awaitable: Awaitable[None]) -> Generator[Any, Any, None]:
        assert isinstance(awaitable, Coroutine)
        step: Callable[[], Any] = lambda: awaitable.send(None)  # noqa: E731 -- replaced at every step
        while True:
            self._write(mark)
            try:
                waited_for = step()
            except StopIteration:
                return
            finally:
                self._write(_NOBODY)
            try:
                sent = yield waited_for
            except BaseException as error:  # noqa: BLE001 -- it is thrown into the coroutine, as await would
                step = _throwing(awaitable, error)
            else:
                step = _sending(awaitable, sent)

    def _write(self, mark: bytes) -> None:
        if self._map is not None:
            self._map[:] = mark


def _mark(plugin: str) -> bytes:
    return plugin.encode()[:SIZE].ljust(SIZE, b"\0")


def _sending(coroutine: Coroutine[Any, Any, None], value: object) -> Callable[[], Any]:
    return lambda: coroutine.send(value)


def _throwing(coroutine: Coroutine[Any, Any, None], error: BaseException) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)
