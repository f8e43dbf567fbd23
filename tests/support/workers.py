"""What the tests of workers and their providers share."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from ksi_common.events.completion import ChatMessage
from ksi_completion.providers.interface import Generation, Job, ProviderFailure
from ksi_completion.providers.worker import WorkerSettings
from ksi_completion.providers.worker_link import WorkerLink
from ksi_daemon.processes import Processes
from ksi_daemon.runner import read_stat
from tests.children import ENV, marks

ODD_WORKER = (sys.executable, "-I", str(Path(__file__).with_name("odd_worker.py")))


def job(*said: str, model: str = "odd", **fields: Any) -> Job:
    """Ask for the next answer of a conversation in which the user began."""
    roles: Sequence[Literal["user", "assistant"]] = ("user", "assistant")
    messages = [
        # Not validated: a prompt of a file may be longer than one that comes over the wire.
        ChatMessage.model_construct(role=roles[at % 2], content=text)
        for at, text in enumerate(said)
    ]
    return Job(request_id="request", session_id="session", model=model, messages=messages, **fields)


@asynccontextmanager
async def linked(run_dir: Path, *arguments: str, **settings: Any) -> AsyncIterator[WorkerLink]:
    """Give a link to odd workers; at its end no process of any of them is left."""
    settings = {"argv": [*ODD_WORKER, *arguments], "env": ENV, "purpose": "odd", **settings}
    async with Processes(run_dir) as processes:
        link = WorkerLink(processes, WorkerSettings(**settings))
        try:
            yield link
        finally:
            await link.close()
        assert marks(run_dir) == []


async def text_of(generation: Generation) -> str:
    """Read an answer to its end."""
    return "".join([text async for text in generation.deltas()])


async def first_of(generation: Generation) -> str:
    """Read the beginning of an answer."""
    return await anext(aiter(generation.deltas()))


async def failure_of(generation: Generation) -> ProviderFailure:
    """Read an answer that fails."""
    with pytest.raises(ProviderFailure) as caught:
        await text_of(generation)
    return caught.value


def kill(pid: int) -> None:
    """Kill a process as the kernel does when memory is short."""
    os.kill(pid, signal.SIGKILL)


def alive(pids: Sequence[int]) -> list[int]:
    """Give those of the processes that run; whose parent was killed may stay listed, as a zombie."""
    stats = ((pid, read_stat(pid)) for pid in pids)
    return [pid for pid, stat in stats if stat is not None and stat.state not in "ZX"]
