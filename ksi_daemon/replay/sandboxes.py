"""Daemons that are made of the log of this one: child processes in homes of their own, effects off."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Container, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson

from ksi_common.errors import InternalError, error_from_wire
from ksi_common.ids import new_id
from ksi_common.paths import Paths
from ksi_common.records import record
from ksi_daemon.children import Tasks
from ksi_daemon.database import Database
from ksi_daemon.processes import Process, Processes
from ksi_daemon.replay.snapshots import Snapshot, remove_others
from ksi_daemon.settings import Settings

FOLDER: Final = "sandboxes"
"""Below the folder of what lasts as long as the daemon."""
ENDING_S: Final = 5.0
"""For a sandbox to end by itself, once it has said what came of it."""
LAST_WORDS_BYTES: Final = 4096
"""How much of what one writes to stderr is kept."""
_NOT_INHERITED: Final = ("KSI_", "NOTIFY_", "WATCHDOG_", "LISTEN_")
_SNAPSHOT: Final = "snapshot"
"""In ``meta``."""


@record
class Order:
    """What a sandbox is told when it starts; JSON."""

    live: str
    sandbox: str
    settings: Mapping[str, Any]
    snapshot: Mapping[str, Any] | None
    keep_snapshot: bool = False
    trust_live: bool = False
    keep_running: bool = False

    @property
    def live_path(self) -> Path:
        """The home that it is made of."""
        return Path(self.live)

    @property
    def sandbox_path(self) -> Path:
        """Its own home."""
        return Path(self.sandbox)

    @property
    def snapshot_from(self) -> Snapshot | None:
        """What its tables begin with."""
        return Snapshot(**self.snapshot) if self.snapshot else None


class Sandboxes:
    """Start sandboxes, and keep the snapshots that they make."""

    def __init__(
        self, database: Database, processes: Processes, paths: Paths, settings: Settings, tasks: Tasks
    ) -> None:
        self.plugins: Sequence[str] = ()
        """Those that are loaded here, and there."""
        self.needed: Container[str] = ()
        """Names of the events that tables are made of."""
        self.turn = asyncio.Lock()
        """Held while a sandbox is made, and while retention takes what one may need."""
        self._database = database
        self._processes = processes
        self._paths = paths
        self._settings = settings
        self._tasks = tasks

    async def snapshot(self) -> Snapshot | None:
        """Give the last snapshot of tables."""
        rows = await self._database.read("SELECT value FROM meta WHERE name = ?", (_SNAPSHOT,))
        return Snapshot(**orjson.loads(rows[0][0])) if rows else None

    async def keep_snapshot(self, *, trust_live: bool = False) -> Sequence[str]:
        """Make a snapshot of what the log makes; give the differences from what is live, if there are any.

        Where there are, nothing is kept, or what is live. The turn is the caller's.
        """
        async with self.start(keep_snapshot=True, trust_live=trust_live) as said:
            last = [step async for step in said][-1]
        made = last.get("snapshot")
        if made is not None:
            snapshot = Snapshot(**made)
            text = orjson.dumps(asdict(snapshot)).decode()
            await self._database.write_apart(
                lambda tx: tx.execute("REPLACE INTO meta VALUES (?, ?)", (_SNAPSHOT, text)).rowcount
            )
            await asyncio.to_thread(remove_others, self._paths.home, snapshot)
        return [table["difference"] for table in last["compared"] if table["difference"]]

    async def clear(self) -> None:
        """Remove what a daemon that was killed has left."""
        folder = self._paths.run / FOLDER
        if folder.exists():
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @asynccontextmanager
    async def start(
        self, *, keep_snapshot: bool = False, trust_live: bool = False, keep_running: bool = False
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Start one; give what it says. At the end of the block nothing of it is left."""
        folder = self._paths.run / FOLDER
        home = folder / new_id()
        snapshot = await self.snapshot()
        order = Order(
            str(self._paths.home),
            str(home),
            self._settings_there(),
            asdict(snapshot) if snapshot else None,
            keep_snapshot,
            trust_live,
            keep_running,
        )
        await asyncio.to_thread(home.mkdir, parents=True, mode=0o700)
        try:
            child = await self._processes.start(
                [sys.executable, "-m", "ksi_daemon.replay"], env=_environment(), purpose="sandbox"
            )
            async with child:
                # All the time: what plugins print would hold it up, once that is too much.
                last_words = self._tasks.create_task(_last_words(child.stderr))
                try:
                    child.stdin.write(orjson.dumps(order) + b"\n")
                    yield _said(child, last_words)
                    child.stdin.close()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(ENDING_S):
                            await child.wait()
                finally:
                    last_words.cancel()
        finally:
            await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)

    def _settings_there(self) -> Mapping[str, Any]:
        settings: dict[str, Any] = self._settings.model_dump(mode="json")
        folders = [str(self._paths.plugins), *settings["plugins_dir"]]
        return {**settings, "plugins_dir": folders, "load_plugins": ",".join(self.plugins), "strict": False}


async def _said(child: Process, last_words: Awaitable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Give what a sandbox says, up to its result; raise what it was refused for."""
    async for line in child.stdout:
        words: dict[str, Any] = orjson.loads(line)
        if "error" in words:
            raise error_from_wire(words["error"])
        yield words
        if words.get("done"):
            return
    why = (await last_words).decode(errors="replace").strip().splitlines()
    raise InternalError(f"the sandbox ended before it was made: {why[-1] if why else 'it said nothing'}")


async def _last_words(stderr: asyncio.StreamReader) -> bytes:
    words = b""
    while chunk := await stderr.read(LAST_WORDS_BYTES):
        words = (words + chunk)[-LAST_WORDS_BYTES:]
    return words


def _environment() -> Mapping[str, str]:
    """Give it what this daemon has, and nothing that says which one it is."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
