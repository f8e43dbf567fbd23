"""What a person waits for: the set-up of a fresh clone, the first answer, the next ones, a cancel.

python benchmarks/answers.py [--fresh] [--repetitions 5] [--markdown]

`--fresh` clones this checkout and lets chat.py set it up, which needs a package index.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.waits import ROOT, Checkout, Row, show
from ksi_client import AsyncClient
from ksi_common.events import completion

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTION = "What is the capital of France?"
STORY = "Tell me a long story about a fox and a hen."


def chats(checkout: Checkout, repetitions: int) -> Iterator[Row]:
    """Time chat.py from no daemon on, then again and again."""
    first = checkout.run("chat.py", QUESTION)
    yield Row("chat.py, no daemon: started, model loaded, answered", [first], 5.0)
    again = [checkout.run("chat.py", QUESTION) for _ in range(repetitions)]
    yield Row("chat.py, the next one: whole process", again, 1.5)
    bare = [checkout.run("-c", "pass") for _ in range(repetitions)]
    ready = [checkout.run("-c", "import bootstrap; bootstrap.enter()") for _ in range(repetitions)]
    yield Row("bootstrap with nothing to do", [b - a for a, b in zip(bare, ready, strict=True)], 0.2)


async def cancels(checkout: Checkout, repetitions: int) -> list[Row]:
    """Time completion:cancel of a queued and of a streaming completion, until its proof."""
    queued, streaming = [], []
    async with AsyncClient(checkout.home / "run" / "daemon.sock") as client:
        for number in range(repetitions):
            session = f"cancel-{number}"
            first = completion.StreamCompletion(
                prompt=STORY, session_id=session, request_id=f"first-{number}"
            )
            steps = client.stream(first)
            async for step in steps:
                if step.type == "delta":
                    break
            waiting = completion.Async(prompt=STORY, session_id=session, request_id=f"second-{number}")
            await client.call(waiting)
            queued.append(await _cancel(client, f"second-{number}"))
            streaming.append(await _cancel(client, f"first-{number}"))
            await steps.aclose()
    return [
        Row("completion:cancel of a queued one", queued, 3.0),
        Row("completion:cancel of a streaming one", streaming, 3.0),
    ]


async def _cancel(client: AsyncClient, request_id: str) -> float:
    began = time.perf_counter()
    reply = await client.call(completion.Cancel(request_id=request_id))
    if reply.status != "cancelled":
        raise SystemExit(f"{request_id} is {reply.state}")
    return time.perf_counter() - began


def fresh(folder: Path) -> Row:
    """Time the first command in a fresh clone."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    checkout = Checkout(folder, shutil.which("python3", path=os.defpath) or "python3", folder / "var")
    try:
        return Row("a fresh clone: set up, started, answered", [checkout.run("chat.py", QUESTION)], 60.0)
    finally:
        checkout.run("daemon_control.py", "stop")


def main() -> int:
    """Measure everything; 1 where a figure is above its bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ksi-") as name:
        checkout = Checkout(ROOT, sys.executable, Path(name) / "var")
        rows = [fresh(Path(name) / "clone")] if options.fresh else []
        try:
            rows += chats(checkout, options.repetitions)
            rows += asyncio.run(cancels(checkout, options.repetitions))
        finally:
            checkout.run("daemon_control.py", "stop")
    show(rows, markdown=options.markdown)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
