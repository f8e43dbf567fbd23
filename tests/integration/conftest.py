"""What the integration tests share: plugins written on the spot, and a log that can be read."""

import asyncio
import json
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from ksi_daemon.consumers import rows
from ksi_daemon.logs import logging_to
from ksi_daemon.settings import LogSettings

WritePlugin = Callable[..., Path]

OF_A_BUSY_MACHINE: Final = ("Executing <", "loop.")
"""How lines of asyncio's debug mode and of the watchdog begin."""


class LogFile:
    """A log that is written while a block runs, and read when it is done."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def written(self, **settings: Any) -> Iterator[None]:
        """Send what is logged to the file; ``settings``: of the log."""
        with logging_to(self.path, LogSettings(**settings)):
            yield

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Read the lines of one event, or all but what is said of a busy machine."""
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        if event is None:
            return [line for line in lines if not line["event"].startswith(OF_A_BUSY_MACHINE)]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def may_read(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let the rows of consumers be read only once this is set."""
    allowed, load = asyncio.Event(), rows.load

    async def load_late(*arguments: Any) -> Any:
        await allowed.wait()
        return await load(*arguments)

    monkeypatch.setattr(rows, "load", load_late)
    return allowed


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no unit of work be interrupted because the machine stalls; that they are is test_writer's."""
    monkeypatch.setattr("ksi_daemon.database.writer.UNIT_LIMIT_S", 30.0)


@pytest.fixture
def log_file(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "log" / "ksi.jsonl")


@pytest.fixture
def write_plugin(tmp_path: Path) -> WritePlugin:
    """Write a single-file plugin; it is named for its file."""

    def write(source: str, name: str = "probe") -> Path:
        path = tmp_path / "plugins" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source).lstrip())
        return path

    return write
