"""The daemon as a process of its own, which can be killed, stopped and started again."""

import asyncio
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import psutil

START_S: Final = 60.0
"""A net for a loaded machine, never a measure."""


class Died(Exception):
    """The process ended before it was ready; the message is what it wrote."""


class DaemonProcess:
    """A daemon with a home of its own, which is removed at the end.

    ``program``: what Python runs. ``wrapper``: a command that runs the command that follows it. ``environ``:
    in addition; no ``KSI_`` variable of the tests' own environment is passed on. ``measured``: coverage is
    measured in it, where it is in the tests; it costs memory and time.
    """

    def __init__(
        self,
        *,
        program: Sequence[str] = ("-m", "ksi_daemon"),
        wrapper: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        measured: bool = False,
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ksi-"))
        self.home = self.base / "var"
        self.socket = self.home / "run" / "daemon.sock"
        self.database = self.home / "db" / "ksi.db"
        self.serving = asyncio.Event()
        """Set from READY=1 until it is killed or stopped."""
        self.pid = 0
        """Of the daemon itself, not of the wrapper."""
        self._command = [*wrapper, sys.executable, *program]
        self.environ = {**_inherited(measured=measured), **self._own(), **(environ or {})}
        """Of the process; a change holds from its next start on."""
        self._process: asyncio.subprocess.Process | None = None
        self._alive: set[int] = set()
        # Called in __aexit__, or at the end of the tests where a time limit has cut one short.
        self._leave_nothing = weakref.finalize(self, _leave_nothing, self.base, self._alive)

    async def __aenter__(self) -> Self:
        self.home.mkdir(mode=0o700, exist_ok=True)
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()
        self._leave_nothing()

    def add_plugin(self, name: str, source: str) -> None:
        """Put a single-file plugin beside the home; the next start loads it."""
        folder = self.base / "plugins"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(source)

    async def start(self) -> None:
        """Start it, and wait until it serves; raise Died where it does not get there."""
        self.pid = 0
        with _listen(self._notified) as notified, self.stderr.open("wb") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=self.environ, stdout=asyncio.subprocess.DEVNULL, stderr=stderr
            )
            try:
                await self._wait_ready(notified, self._process)
            except* Died as group:
                raise group.exceptions[0] from None
        self.pid = self._pid()
        self._alive.add(self.pid)
        self.serving.set()

    def kill_now(self) -> None:
        """Send SIGKILL, and do not wait: ``wait`` does."""
        self.serving.clear()
        os.kill(self.pid or self._running.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end; give the exit code, or the number of the signal below zero."""
        async with asyncio.timeout(START_S):
            code = await self._running.wait()
        self._alive.clear()
        return code

    async def kill(self) -> None:
        """End it by SIGKILL."""
        self.kill_now()
        await self.wait()

    async def stop(self) -> int:
        """End it by SIGTERM; give the exit code."""
        self.serving.clear()
        os.kill(self.pid, signal.SIGTERM)
        return await self.wait()

    @property
    def stderr(self) -> Path:
        """Where what it writes to stderr goes."""
        return self.base / "stderr"

    @property
    def rss(self) -> int:
        """Bytes of memory that it has, now."""
        return int(psutil.Process(self.pid).memory_info().rss)

    @property
    def _notified(self) -> Path:
        return self.base / "notify.sock"

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    def _own(self) -> dict[str, str]:
        return {
            "KSI_HOME": str(self.home),
            "NOTIFY_SOCKET": str(self._notified),
            "XDG_CONFIG_HOME": str(self.base / "config"),
        }

    async def _wait_ready(self, notified: socket.socket, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(START_S), asyncio.TaskGroup() as tasks:
            end = tasks.create_task(self._expect_no_end(process))
            while b"READY=1" not in await loop.sock_recv(notified, 4096):
                pass
            end.cancel()

    async def _expect_no_end(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        raise Died(f"exit code {code}: {self.stderr.read_text()}")

    def _pid(self) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(os.fspath(self.socket))
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])


def _leave_nothing(base: Path, alive: set[int]) -> None:
    for pid in alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(base, ignore_errors=bool(alive))


def _inherited(*, measured: bool) -> dict[str, str]:
    left_out = () if measured else ("COVERAGE_PROCESS_START",)
    return {k: v for k, v in os.environ.items() if not k.startswith("KSI_") and k not in left_out}


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind(os.fspath(path))
    return sock
