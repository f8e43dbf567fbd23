"""Serve the routes of plugins over HTTP to who knows the token: any page in a browser can reach a port.
In ksi.toml: plugins.web = {port = 8090, token_file = "/home/ada/token"}; ask with curl --oauth2-bearer."""

import asyncio
import json
from contextlib import closing, suppress
from email import message_from_bytes
from hmac import compare_digest
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, Field, FilePath

from ksi_daemon.plugin import HttpRoute, HttpRoutes, KSIError, LocalBus, NotFound, Services, hookimpl


class Web(BaseModel):
    port: int = Field(0, description="Of 127.0.0.1; 0: it serves nothing.")
    token_file: FilePath | None = Field(None, description="Its words must be said; none: it serves nothing.")


@hookimpl
def ksi_settings() -> type[BaseModel]:
    return Web


@hookimpl
def ksi_routes() -> list[HttpRoute]:
    return [HttpRoute("GET", "/health", "system:health"), HttpRoute("GET", "/state", "state:get")]


@hookimpl
async def ksi_serve(services: Services) -> None:
    settings, bus, routes = services.get(Web), services.get(LocalBus), services.get(HttpRoutes)
    token = settings.token_file.read_text().strip() if settings.token_file else ""

    async def answer(request: bytes) -> tuple[str, object]:
        line, _, headers = request.partition(b"\r\n")
        said = str(message_from_bytes(headers)["authorization"])
        if not compare_digest(said.encode(errors="replace"), f"Bearer {token}".encode()):
            return "401 Unauthorized", {"message": "say the token of plugins.web.token_file"}
        method, target, _ = line.decode().split()
        url = urlsplit(target)
        try:
            for route in routes.all:
                if (route.method, route.path) == (method, url.path):
                    return "200 OK", await bus.ask(route.event, dict(parse_qsl(url.query)))
            raise NotFound(f"nothing is at {url.path}")
        except KSIError as error:
            return "404 Not Found" if error.code == "NOT_FOUND" else "400 Bad Request", error.to_wire()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(EOFError, OSError, ValueError, asyncio.LimitOverrunError):
            async with asyncio.timeout(30):
                status, body = await answer(await reader.readuntil(b"\r\n\r\n"))
            text = f"HTTP/1.0 {status}\r\ncontent-type: application/json\r\n\r\n{json.dumps(body)}\n"
            writer.write(text.encode())

    if settings.port and token:
        async with await asyncio.start_server(serve, "127.0.0.1", settings.port) as server:
            await server.serve_forever()
