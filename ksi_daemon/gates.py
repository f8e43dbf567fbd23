"""The transports that plugins give, open as long as the daemon's own socket."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Final, Self

import structlog

from ksi_daemon.catalog import Plugin
from ksi_daemon.explaining import explain
from ksi_daemon.hooks import Relay
from ksi_daemon.supervisor import attempt_async

log = structlog.get_logger()

CLOSE_S: Final = 5.0
"""What those of each plugin have for closing."""


class Gates:
    """Open and close the ways in that plugins give beside the socket."""

    def __init__(self, relay: Relay, gate: Callable[[], asyncio.Protocol]) -> None:
        self._relay = relay
        self._gate = gate
        self._open: dict[str, AsyncExitStack] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self, plugins: Iterable[Plugin]) -> dict[str, str]:
        """Open what each plugin gives; say what went wrong, by plugin. The others are not touched by it."""
        errors: dict[str, str] = {}
        for plugin in plugins:
            error = await attempt_async(lambda name=plugin.name: self._open_those_of(name))  # type: ignore[misc]
            if error is not None:
                errors[plugin.name] = explain(error)
        return errors

    async def close(self) -> None:
        """Close all, the last one first; what fails is logged. To do so again does nothing."""
        while self._open:
            plugin, opened = self._open.popitem()
            error = await attempt_async(partial(_close, opened))
            if error is not None:
                log.error("transport.not_closed", plugin=plugin, error=repr(error))

    async def _open_those_of(self, plugin: str) -> None:
        async with AsyncExitStack() as opened:
            for transport in self._relay.transports(plugin):
                await opened.enter_async_context(transport(self._gate))
            self._open[plugin] = opened.pop_all()


async def _close(opened: AsyncExitStack) -> None:
    async with asyncio.timeout(CLOSE_S):
        await opened.aclose()
