"""A second way in: the same wire on another Unix socket, as for a container that gets only that file.

[plugins.second_socket]
path = "/srv/shared/ksi.sock"
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import BaseModel, Field

from ksi_daemon.plugin import Services, Transport, hookimpl

chosen: dict[str, Path] = {}


class SecondSocket(BaseModel):
    path: Path | None = Field(None, description="Of the socket; without it there is none.")


@hookimpl
def ksi_settings() -> type[BaseModel]:
    return SecondSocket


@hookimpl
async def ksi_startup(services: Services) -> None:
    settings = services.get(SecondSocket)
    if settings.path is not None:
        chosen["path"] = settings.path


@asynccontextmanager
async def second(protocol: Callable[[], asyncio.Protocol]) -> AsyncIterator[None]:
    path = chosen["path"]
    path.unlink(missing_ok=True)
    before = os.umask(0o177)  # it is the owner's alone
    try:
        server = await asyncio.get_running_loop().create_unix_server(protocol, path)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


@hookimpl
def ksi_transports() -> list[Transport]:
    return [second] if chosen else []
