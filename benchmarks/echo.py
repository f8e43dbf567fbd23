"""Echo lines over a Unix socket: the floor that no daemon of JSON lines can be under.

It splits each chunk into lines and writes them back with one write per turn, as a daemon would, and parses
nothing.

    python benchmarks/echo.py /tmp/echo.sock
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Echo(asyncio.Protocol):
    """Send every whole line back."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, chunk: bytes) -> None:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines[-1]
        lines[-1] = b""
        self._transport.write(b"\n".join(lines))


async def serve(socket: str) -> None:
    """Echo until the process is ended."""
    server = await asyncio.get_running_loop().create_unix_server(Echo, socket)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
