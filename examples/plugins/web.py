"""Serve the routes that plugins give over HTTP, for development, to who knows the token: every user of the
machine, and every page in a browser, can connect to a port. `curl -H "Authorization: Bearer $TOKEN"`

[plugins.web]
port = 8090
token = "a long secret of your own"
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import closing, suppress
from email import message_from_bytes
from hmac import compare_digest
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, Field

from ksi_daemon.plugin import HttpRoute, HttpRoutes, KSIError, LocalBus, Services, hookimpl

STATUS = {"NOT_FOUND": "404 Not Found", "UNAVAILABLE": "503 Service Unavailable"}


class Web(BaseModel):
    port: int = Field(0, description="Of 127.0.0.1; 0: it serves nothing.")
    token: str = Field("", description="What a request must say; without one, it serves nothing.")


@hookimpl
def ksi_settings() -> type[BaseModel]:
    return Web


@hookimpl
def ksi_routes() -> Sequence[HttpRoute]:
    return [HttpRoute("GET", "/health", "system:health"), HttpRoute("GET", "/state", "state:get")]


@hookimpl
async def ksi_serve(services: Services) -> None:
    settings, bus, routes = services.get(Web), services.get(LocalBus), services.get(HttpRoutes)

    async def answer(request: bytes) -> tuple[str, object]:
        line, _, headers = request.partition(b"\r\n")
        said = str(message_from_bytes(headers)["authorization"]).encode(errors="replace")
        if not compare_digest(said, f"Bearer {settings.token}".encode()):
            return "401 Unauthorized", {"message": "say the token of [plugins.web]"}
        method, target, _ = line.decode().split()
        url = urlsplit(target)
        for event in (each.event for each in routes.all if (each.method, each.path) == (method, url.path)):
            try:
                return "200 OK", await bus.ask(event, dict(parse_qsl(url.query)))
            except KSIError as error:
                return STATUS.get(error.code, "400 Bad Request"), error.to_wire()
        return "404 Not Found", {"message": f"nothing is at {url.path}"}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(EOFError, OSError, ValueError, asyncio.LimitOverrunError):
            async with asyncio.timeout(30):
                status, body = await answer(await reader.readuntil(b"\r\n\r\n"))
            head = f"HTTP/1.0 {status}\r\ncontent-type: application/json\r\n\r\n"
            writer.write(f"{head}{json.dumps(body)}\n".encode())

    if settings.port and settings.token:
        async with await asyncio.start_server(serve, "127.0.0.1", settings.port) as server:
            await server.serve_forever()
