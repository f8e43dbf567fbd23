"""Which plugin's code is running: written where it outlives the process, for the supervisor above it.

A crash of the process (a segmentation fault, ``os._exit``) does not say who did it. While foreign code runs,
its plugin's name stands in a small file that is mapped into memory: a mark costs two stores, not a write.
The file exists only while the daemon runs; whoever finds it later knows who was at work: the first slot is
the loop's, the others are of threads.
"""

import mmap
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, Self, TypeVar

from ksi_common.envelope import EventEnvelope
from ksi_daemon.database import Unit
from ksi_daemon.outcomes import Begin, Endpoint, Later, Replied, Reply, Send

P = ParamSpec("P")
T = TypeVar("T")

SIZE: Final = 128
"""Bytes of a slot."""
SLOTS: Final = 32
_NOBODY: Final = bytes(SIZE)


class Breadcrumb:
    """The mark of one daemon. Outside the block, marking does nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None
        self._now = _NOBODY
        self._free = list(range(1, SLOTS))
        """Slots of nobody."""
        self.exempt: set[str] = set()
        """Plugins that are not marked: the daemon does not do without them."""

    def __enter__(self) -> Self:
        self._path.write_bytes(_NOBODY * SLOTS)
        with self._path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE * SLOTS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
        self._path.unlink(missing_ok=True)

    def during(self, plugin: str, action: Callable[[], T]) -> T:
        """Run ``action``, which is that plugin's code."""
        before = self._now
        self._write(_NOBODY if plugin in self.exempt else _mark(plugin))
        try:
            return action()
        finally:
            self._write(before)

    def in_thread(self, plugin: str, action: Callable[[], T]) -> Callable[[], T]:
        """Mark what is run in a thread, in a slot of its own; where there is none left it goes unmarked."""
        mark = _mark(plugin)

        def marked() -> T:
            try:
                slot = self._free.pop()
            except IndexError:
                return action()
            self._write_slot(slot, mark)
            try:
                return action()
            finally:
                self._write_slot(slot, _NOBODY)
                self._free.append(slot)

        return marked

    def awaiting(self, plugin: str, awaitable: Awaitable[T]) -> Awaitable[T]:
        """Mark every step of what is awaited."""
        if plugin in self.exempt or not isinstance(awaitable, Coroutine):
            return awaitable
        return self._steps(_mark(plugin), awaitable)

    def around_call(self, plugin: str, call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Mark every step of what a function gives to await."""
        mark = _mark(plugin)

        async def marked(*args: P.args, **kwargs: P.kwargs) -> T:
            awaitable = call(*args, **kwargs)
            if not isinstance(awaitable, Coroutine):
                return await awaitable
            return await self._steps(mark, awaitable)

        return marked

    def before(self, plugin: str, begin: Begin) -> Begin:
        """Mark what a handler does at once, and its unit of work in the writer."""

        def marked(envelope: EventEnvelope) -> Replied | Unit[Reply] | Awaitable[Reply] | Later:
            outcome = self.during(plugin, lambda: begin(envelope))
            if isinstance(outcome, Replied | Awaitable | Later):
                return outcome
            return lambda tx: self.in_thread(plugin, partial(outcome, tx))()

        return marked

    def around(self, plugin: str, endpoint: Endpoint) -> Endpoint:
        """Mark every step of ``endpoint`` that runs, and nothing while it waits: others run then."""
        mark = _mark(plugin)

        async def marked(envelope: EventEnvelope, send: Send) -> None:
            await self._steps(mark, endpoint(envelope, send))

        return marked

    @types.coroutine
    def _steps(self, mark: bytes, awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
        assert isinstance(awaitable, Coroutine)
        step: Callable[[], Any] = lambda: awaitable.send(None)  # noqa: E731 -- replaced at every step
        while True:
            before = self._now
            self._write(mark)
            try:
                waited_for = step()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # what the coroutine returns
            finally:
                self._write(before)
            try:
                sent = yield waited_for
            except BaseException as error:  # noqa: BLE001 -- it is thrown into the coroutine, as await would
                step = _throwing(awaitable, error)
            else:
                step = _sending(awaitable, sent)

    def _write(self, mark: bytes) -> None:
        self._now = mark
        if self._map is not None:
            self._map[:SIZE] = mark

    def _write_slot(self, slot: int, mark: bytes) -> None:
        if self._map is not None:
            self._map[slot * SIZE : (slot + 1) * SIZE] = mark


def _mark(plugin: str) -> bytes:
    return plugin.encode()[:SIZE].ljust(SIZE, b"\0")


def _sending(coroutine: Coroutine[Any, Any, Any], value: object) -> Callable[[], Any]:
    return lambda: coroutine.send(value)


def _throwing(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)
