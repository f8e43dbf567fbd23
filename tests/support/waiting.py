"""Wait for what tells nobody when it changes: another process's end, a row that another process writes."""

import asyncio
from collections.abc import Awaitable, Callable

LOOK_S = 0.02


async def eventually(condition: Callable[[], Awaitable[bool]], *, patience_s: float = 60.0) -> None:
    """Look again and again until it holds; AssertionError after ``patience_s``, a net and no measure."""
    for _ in range(round(patience_s / LOOK_S)):
        if await condition():
            return
        await asyncio.sleep(LOOK_S)
    raise AssertionError(f"not within {patience_s:g} s: {condition.__qualname__}")
