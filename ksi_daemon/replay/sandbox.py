"""A database in a temporary folder, with the tables of every plugin, and nothing in them."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from ksi_common.clock import Clock
from ksi_daemon.database import Database
from ksi_daemon.threads import Threads

log = structlog.get_logger()


@asynccontextmanager
async def sandbox(
    migrations: Mapping[str, Mapping[int, str]], clock: Clock, threads: Threads
) -> AsyncIterator[Database]:
    """Open one; it is removed at the end. ``migrations``: of each plugin."""
    folder = Path(await threads.run(lambda: tempfile.mkdtemp(prefix="ksi-replay-")))
    try:
        database = Database(
            folder / "db" / "ksi.db",
            backups=folder / "backups",
            clock=clock,
            published=lambda _events, _head: None,
            failed=lambda error: log.error("sandbox.failed", error=str(error)),
        )
        async with database:
            for plugin, scripts in migrations.items():
                database.migrate(plugin, scripts)
            database.start()
            yield database
    finally:
        await threads.run(lambda: shutil.rmtree(folder, ignore_errors=True))
