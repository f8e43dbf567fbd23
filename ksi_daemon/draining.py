"""The end of a daemon's work: plugins and connections finish what they have, then plugins shut down."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog

from ksi_daemon.catalog import Plugin
from ksi_daemon.explaining import explain
from ksi_daemon.hooks import Relay
from ksi_daemon.services import Services
from ksi_daemon.supervisor import attempt_async
from ksi_daemon.transports.unix import UnixServer

log = structlog.get_logger()

SHUTDOWN_S: Final = 5.0
"""What each plugin has for cleaning up."""


async def drain(
    server: UnixServer, plugins: Sequence[Plugin], relay: Relay, services: Services, grace_s: float
) -> None:
    """Return when nothing is at work any more, or ``grace_s`` seconds are over; what fails is logged."""
    async with asyncio.TaskGroup() as finishing:
        for plugin in plugins:
            finishing.create_task(_finish(plugin.name, relay, services, grace_s))
        left = await server.drain(grace_s)
    if left:
        log.warning("request.abandoned", connections=left)
    for plugin in reversed(plugins):
        error = await attempt_async(partial(_shut_down, plugin.name, relay))
        if error is not None:
            log.error("plugin.not_shut_down", plugin=plugin.name, error=explain(error))


async def _finish(plugin: str, relay: Relay, services: Services, grace_s: float) -> None:
    """Let a plugin finish what it has at work, while connections finish theirs."""

    async def finish() -> None:
        async with asyncio.timeout(grace_s):
            await relay.drain(plugin, services=services, grace_s=grace_s)

    error = await attempt_async(finish)
    if isinstance(error, TimeoutError):
        log.info("plugin.broken_off", plugin=plugin, grace_s=grace_s)
    elif error is not None:
        log.error("plugin.not_drained", plugin=plugin, error=explain(error))


async def _shut_down(plugin: str, relay: Relay) -> None:
    async with asyncio.timeout(SHUTDOWN_S):
        await relay.shutdown(plugin)
