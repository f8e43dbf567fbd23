"""A raw connection: lines out, frames in."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

PATIENCE_S: Final = 30.0
"""How long a test waits for what must come: a net, never a measure."""


@dataclass(slots=True)
class Wire:
    """A connection that sends lines and reads frames, with nothing between."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    patience_s: float = PATIENCE_S
    """How long a frame may take to come."""
    _ids: "count[int]" = field(default_factory=lambda: count(1))

    def send(self, frame: Mapping[str, Any] | bytes) -> None:
        """Send a frame, or bytes as they are."""
        self.writer.write(frame if isinstance(frame, bytes) else json.dumps(frame).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        """Read the next frame; EOFError where the connection ends."""
        async with asyncio.timeout(self.patience_s):
            line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the daemon closed the connection")
        frame: dict[str, Any] = json.loads(line)
        return frame

    async def call(self, event: str, data: Mapping[str, Any] | None = None, **frame: Any) -> dict[str, Any]:
        """Send a request and read its one answer, which must be the next frame for its id."""
        ident = frame.pop("id", f"w{next(self._ids)}")
        self.send({"event": event, "data": data or {}, "id": ident, **frame})
        while True:
            answer = await self.receive()
            if answer["id"] == ident:
                return answer

    async def wait_closed(self) -> None:
        """Read until the daemon closes."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                await self.reader.read()

    def close(self) -> None:
        """Hang up."""
        self.writer.close()
