"""A small HTTP server on loopback, for what stands in for a provider's service: one request a connection."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True, slots=True)
class Received:
    """A request: its path without the query, its headers by lower-case name, its JSON."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


class Exchange:
    """One request, and the way to answer it. ``gone`` is set when the client has hung up."""

    def __init__(self, received: Received, writer: asyncio.StreamWriter, gone: asyncio.Event) -> None:
        self.received = received
        self.gone = gone
        self._writer = writer

    def reply(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        """Answer with JSON, or with a text as it is."""
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self._head(
            status, {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
        )
        self._writer.write(data)

    def begin_stream(self) -> None:
        """Answer with server-sent events, in chunks."""
        self._head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})

    def event(self, data: Mapping[str, Any] | str, *, name: str | None = None) -> None:
        """Send one event."""
        text = data if isinstance(data, str) else json.dumps(data)
        line = f"event: {name}\n" * (name is not None) + f"data: {text}\n\n"
        self._writer.write(f"{len(line.encode()):x}\r\n{line}\r\n".encode())

    def end_stream(self) -> None:
        """Say that the stream is whole; without it, it was cut."""
        self._writer.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Overloaded"
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        self._writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode())


Serve = Callable[[Exchange], Awaitable[None]]


@asynccontextmanager
async def http_server(serve: Serve) -> AsyncIterator[str]:
    """Serve on a port of loopback, and give the URL; at the end, what is under way is cut."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await _converse(reader, writer, serve)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tuple(tasks))


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, serve: Serve) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        received = await _read(reader)
        gone = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_watch(reader, gone))
            await serve(Exchange(received, writer, gone))
            with suppress(ConnectionError):
                await writer.drain()
            watching.cancel()


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    data = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(first.split()[1].partition("?")[0], headers, json.loads(data or b"{}"))


async def _watch(reader: asyncio.StreamReader, gone: asyncio.Event) -> None:
    with suppress(ConnectionError):
        while await reader.read(65536):
            pass
    gone.set()
