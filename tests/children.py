"""What the tests of child processes share."""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import uvloop

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
PYTHON = (sys.executable, "-I", "-S", "-c")


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test once on asyncio's loop and once on uvloop's."""

    @pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
    @wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        async def in_time() -> None:
            async with asyncio.timeout(50):
                await test(**fixtures)

        with asyncio.Runner(debug=True, loop_factory=loop_factory) as loop:
            loop.run(in_time())

    signature = inspect.signature(test)
    loop_parameter = inspect.Parameter("loop_factory", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [loop_parameter, *signature.parameters.values()]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    return run  # type: ignore[no-any-return]  # pytest's marks are untyped


def marks(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in (run_dir / "children").iterdir()]


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no Path, whose iterdir holds one more
