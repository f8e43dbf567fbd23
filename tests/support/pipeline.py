"""Requests in volume: raw lines, many in flight."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import count, islice
from pathlib import Path
from typing import Any

import orjson


def call_line(event: str, data: dict[str, Any] | None = None, ident: str | None = None) -> bytes:
    """Render a request; the daemon makes an id where there is none."""
    frame = {"event": event, "data": data or {}, "id": ident}
    return orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE)


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect, and close at the end."""
    reader, writer = await asyncio.open_unix_connection(path, limit=4 * 1024 * 1024)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def pipeline(
    path: Path, lines: Iterable[bytes], heard: Callable[[bytes], object], *, window: int = 64
) -> None:
    """Send requests, ``window`` of them in flight, and give ``heard`` each answer as it comes.

    Raises ConnectionError where the daemon hangs up before it has answered all.
    """
    unsent, flying, rest = iter(lines), 0, b""
    async with connected(path) as (reader, writer):
        while True:
            batch = list(islice(unsent, window - flying))
            flying += len(batch)
            if not flying:
                return
            writer.write(b"".join(batch))
            chunk = await reader.read(1 << 18)
            if not chunk:
                raise ConnectionResetError("the daemon hung up")
            *answers, rest = (rest + chunk).split(b"\n")
            flying -= len(answers)
            for answer in answers:
                heard(answer)


async def publish_many(path: Path, event: str, number: int, *, start: int = 0, size: int = 1000) -> None:
    """Publish ``number`` events of ``size`` bytes that count from ``start``; fail at the first error."""
    pad = "x" * (size - 20)
    numbers = islice(count(start), number)
    lines = (call_line("event:publish", {"event": event, "data": {"n": n, "pad": pad}}) for n in numbers)
    await pipeline(path, lines, expect_reply)


def expect_reply(answer: bytes) -> None:
    """Fail where an answer is none that was asked for."""
    assert b'"type":"reply"' in answer, answer.decode()
