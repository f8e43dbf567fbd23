"""Serve the routes that plugins give over HTTP, on this machine only; a gateway for development.

[plugins.web]
port = 8090
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, Field

from ksi_daemon.plugin import Command, HttpRoute, HttpRoutes, KSIError, LocalBus, NotFound, Services, hookimpl


class Web(BaseModel):
    port: int = Field(0, description="Of 127.0.0.1; 0: it serves nothing.")


@hookimpl
def ksi_settings() -> type[BaseModel]:
    return Web


@hookimpl
def ksi_routes() -> Sequence[HttpRoute]:
    return [HttpRoute("GET", "/health", "system:health"), HttpRoute("GET", "/state", "state:get")]


@hookimpl
def ksi_cli() -> Sequence[Command]:
    return [Command("look-up", "state:get", ["key"], "Show what is stored under a key.")]


@hookimpl
async def ksi_serve(services: Services) -> None:
    settings, bus, routes = services.get(Web), services.get(LocalBus), services.get(HttpRoutes)

    async def answer(method: str, target: str) -> tuple[str, Mapping[str, Any]]:
        url = urlsplit(target)
        try:
            for route in routes.all:
                if (route.method, route.path) == (method, url.path):
                    return "200 OK", await bus.ask(route.event, dict(parse_qsl(url.query)))
            raise NotFound(f"nothing is at {url.path}")
        except KSIError as error:
            return "400 Bad Request", error.to_wire()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, _ = (await reader.readline()).decode().split(maxsplit=2)
        status, body = await answer(method, target)
        head = f"HTTP/1.0 {status}\r\ncontent-type: application/json\r\n\r\n"
        writer.write(f"{head}{json.dumps(body)}\n".encode())
        writer.close()

    if settings.port:
        async with await asyncio.start_server(serve, "127.0.0.1", settings.port) as server:
            await server.serve_forever()
