"""`daemon_control.py start --reload` with the real daemon: what changes runs, what is broken does not."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_client import AsyncClient
from ksi_common.paths import Paths

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """\
from ksi_daemon.plugin import Bus, Message, Notification, Request, handler


class Said(Message):
    word: str


class Told(Notification, event="probe:told"):
    word: str


class Ask(Request[Said], event="probe:ask"):
    '''Ask.'''


@handler
async def ask(request: Ask, bus: Bus) -> Said:
    await bus.notify(Told(word="one"))
    return Said(word="one")
"""
MAIN = "import sys; from ksi_client.control.main import main"
PATIENCE_S = 30.0


class Reloading:
    """`start --reload` of a home of its own, and its lines."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder / "var")
        self.plugin = folder / "plugins" / "probe.py"
        self.plugin.parent.mkdir()
        self.write(SOURCE)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
        self.environ = {**kept, "KSI_HOME": str(self.paths.home), "PYTHONUNBUFFERED": "1"}

    def write(self, source: str) -> None:
        """Change the plugin in one step: no half of it is there to be seen."""
        written = self.plugin.parents[1] / "probe.new"
        written.write_text(source)
        written.replace(self.plugin)

    async def begin(self) -> None:
        """Start, and return when changes are heard of."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"{MAIN}; main()", "start", "--reload",
            env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        await self.line("Watching ")

    async def line(self, beginning: str) -> str:
        """Read up to a line that begins so; give it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := (await self.process.stdout.readline()).decode():
                if line.startswith(beginning):
                    return line
        raise AssertionError(f"it ended without {beginning!r}")

    def children(self) -> list[str]:
        """List its children, zombies too."""
        pid = self.process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    async def end(self) -> None:
        """Press Ctrl-C, and wait for the end."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            await self.process.communicate()


@pytest.fixture
async def reloading() -> AsyncIterator[Reloading]:
    folder = Path(tempfile.mkdtemp(prefix="ksi"))
    made = Reloading(folder)
    try:
        await made.begin()
        yield made
    finally:
        await made.end()
        shutil.rmtree(folder)


@pytest.mark.timeout(120)
async def test_a_change_is_run_and_followers_miss_nothing(reloading: Reloading) -> None:
    async with AsyncClient(reloading.paths.socket) as ksi:
        told = ksi.subscribe("probe:told", start="beginning")
        assert (await ksi.call_raw("probe:ask"))["word"] == "one"
        assert (await anext(told)).data == {"word": "one"}
        reloading.write(SOURCE.replace("one", "two"))
        assert "probe.py: reloaded in" in await reloading.line("✓ ")
        assert (await ksi.call_raw("probe:ask"))["word"] == "two"
        assert (await anext(told)).data == {"word": "two"}

        reloading.write("def f(:\n")
        assert await reloading.line("✗ ") == "✗ probe.py:1: invalid syntax\n"
        assert (await ksi.call_raw("probe:ask"))["word"] == "two"

        reloading.write("1 / 0\n")
        await reloading.line("✓ ")
        assert "ZeroDivisionError: division by zero (probe.py:1)" in await reloading.line("  ✗ probe")

        reloading.write(SOURCE)
        await reloading.line("✓ ")
        assert (await ksi.call_raw("probe:ask"))["word"] == "one"
    assert len(reloading.children()) == 1, "the supervisors before were not reaped"
    await reloading.end()
    assert not reloading.paths.socket.exists()


def test_without_watchfiles_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ImportError\n")
    done = subprocess.run(
        [sys.executable, "-c", f"{MAIN}; sys.exit(main())", "start", "--reload"],
        env={**os.environ, "KSI_HOME": str(tmp_path / "var"), "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--reload needs watchfiles" in done.stderr
    assert "pip install 'ksi[reload]'" in done.stderr
