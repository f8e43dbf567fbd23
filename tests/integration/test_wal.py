"""Every database that a daemon keeps is in WAL: readers never wait for the writer, nor it for them."""

from pathlib import Path
from typing import Final

from ksi_daemon.testing import running_daemon
from tests.support.daemon_process import DaemonProcess
from tests.support.databases import rows

from .conftest import WritePlugin

MAGIC: Final = b"SQLite format 3\0"

KEEPER = """
    from collections.abc import AsyncIterator, Sequence
    from contextlib import asynccontextmanager
    from pathlib import Path
    from typing import Any

    from ksi_daemon.plugin import AsyncSQLiteDB, Message, Request, Service, handler, hookimpl

    class Notes(AsyncSQLiteDB):
        '''A database of the plugin's own.'''

    class Kept(Message):
        count: int

    class Keep(Request[Kept], event="keeper:keep", safe=True):
        '''Keep a note.'''
        note: str

    @asynccontextmanager
    async def opened() -> AsyncIterator[Notes]:
        path = Path(__file__).parent.parent / "var" / "db" / "keeper.db"
        async with Notes(path, migrations={1: "CREATE TABLE notes (note TEXT);"}) as notes:
            yield notes

    @hookimpl
    def ksi_services() -> Sequence[Service[Any]]:
        return [Service(Notes, opened)]

    @handler
    async def keep(request: Keep, notes: Notes) -> Kept:
        async with notes.transaction():
            await notes.execute("INSERT INTO notes VALUES (?)", (request.note,))
        return Kept(count=len(await notes.fetch("SELECT * FROM notes")))
"""


def databases(home: Path) -> list[Path]:
    """List the SQLite files under a home, by what they are and not by their names."""
    return sorted(path for path in home.rglob("*") if path.is_file() and begins(path) == MAGIC)


def begins(path: Path) -> bytes:
    """Read as much of a file as tells what it is."""
    with path.open("rb") as file:
        return file.read(len(MAGIC))


def journal_modes(home: Path) -> dict[str, str]:
    """Give the journal mode of each database, by the name of its file."""
    return {path.name: str(rows(path, "PRAGMA journal_mode")[0][0]) for path in databases(home)}


async def test_every_database_under_var_is_in_wal(write_plugin: WritePlugin, tmp_path: Path) -> None:
    home = tmp_path / "ksi" / "var"
    async with running_daemon(home=home, plugins=[write_plugin(KEEPER, "keeper")]) as ksi:
        await ksi.call_raw("state:set", {"key": "a", "value": 1})
        assert await ksi.call_raw("keeper:keep", {"note": "one"}) == {"count": 1}
        assert journal_modes(home) == {"keeper.db": "wal", "ksi.db": "wal"}
        assert (home / "db" / "ksi.db-wal").stat().st_size > 0


async def test_every_database_of_a_daemon_process_is_in_wal_and_stays_so() -> None:
    async with DaemonProcess() as daemon:
        assert journal_modes(daemon.home) == {"ksi.db": "wal"}
        await daemon.kill()
        assert journal_modes(daemon.home) == {"ksi.db": "wal"}
        await daemon.start()
        assert await daemon.stop() == 0
        assert journal_modes(daemon.home) == {"ksi.db": "wal"}
