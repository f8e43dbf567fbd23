"""The one way to open a SQLite file asynchronously."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiosqlite

from ksi_common.errors import FailedPrecondition

T = TypeVar("T")

Parameters = Sequence[Any] | Mapping[str, Any]


class SchemaTooNew(FailedPrecondition):
    """The file was made by a newer version."""


class AsyncSQLiteDB:
    """A SQLite file in WAL mode with ``synchronous=FULL`` and foreign keys.

    ``migrations``: numbered SQL scripts, ``{1: "CREATE TABLE …", 2: …}``, applied in order, each in a
    transaction of its own; ``PRAGMA user_version`` is the last one applied. A file with a higher one
    raises SchemaTooNew and is left as it is. ``read_only``: the file must exist; nothing can be written.

    Cancelling a call leaves no half-done statement: SQLite finishes it in the thread of the connection.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        migrations: Mapping[int, str] | None = None,
        read_only: bool = False,
        busy_timeout_s: float = 5.0,
    ) -> None:
        self.path = Path(path)
        self._migrations = dict(sorted((migrations or {}).items()))
        self._read_only = read_only
        self._busy_timeout_s = busy_timeout_s
        self._connection: aiosqlite.Connection | None = None
        self._turn = asyncio.Lock()
        self._owner: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Self:
        if self._migrations and not self._read_only:
            await self._look_first()
        target = f"{self.path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rwc'}"
        connection = aiosqlite.connect(
            target, uri=True, isolation_level=None, timeout=self._busy_timeout_s, cached_statements=256
        )
        # No public way: without it the exit of a crashed process would wait for this thread for ever.
        thread = connection._thread  # noqa: SLF001
        thread.daemon = True
        try:
            self._connection = await connection
        except BaseException:
            # aiosqlite lets the thread end, but does not wait: its last word would meet a closed loop.
            await asyncio.to_thread(thread.join)
            raise
        try:
            await self._prepare()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the file; may be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    @property
    def connection(self) -> aiosqlite.Connection:
        """The aiosqlite connection, for what this class does not offer; raises where it is closed."""
        if self._connection is None:
            raise FailedPrecondition(f"database {self.path.name} is not open", reason="closed")
        return self._connection

    async def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement; give the number of rows that it changed."""
        async with self.connection.execute(sql, parameters) as cursor:
            return cursor.rowcount

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Run a query; give all its rows. One hop to the thread of the connection."""
        return list(await self.connection.execute_fetchall(sql, parameters))

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``function`` in the thread of the connection: one hop, whatever number of rows it looks at."""
        connection = self.connection
        # aiosqlite has no public way to do more than one thing in a hop.
        execute: Callable[..., Awaitable[T]] = connection._execute  # noqa: SLF001
        return await execute(function, connection._conn)  # noqa: SLF001

    async def fetch_one(self, sql: str, parameters: Parameters = ()) -> sqlite3.Row | None:
        """Run a query; give its first row."""
        rows = await self.fetch(sql, parameters)
        return rows[0] if rows else None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Self]:
        """Run statements that commit together, or, where the block raises, not at all.

        A connection has one transaction: other tasks wait for their turn; nested in one task, it raises
        FailedPrecondition. Statements of other tasks outside ``transaction()`` would join it: use one
        AsyncSQLiteDB for writing, through this method only, and others for reading.
        """
        if self._owner is asyncio.current_task():
            raise FailedPrecondition("this task has a transaction open already", reason="nested_transaction")
        async with self._turn:
            self._owner = asyncio.current_task()
            try:
                await self.execute("BEGIN IMMEDIATE")
                yield self
                await self.execute("COMMIT")
            except BaseException:
                # It waits behind what was cancelled: a BEGIN still comes before it, and after a COMMIT
                # SQLite says that there is nothing to roll back.
                with suppress(sqlite3.OperationalError):
                    await self.execute("ROLLBACK")
                raise
            finally:
                self._owner = None

    async def _look_first(self) -> None:
        """Refuse a newer file before it is open for writing: to close it then would change it."""
        try:
            async with AsyncSQLiteDB(self.path, read_only=True) as reader:
                await reader._refuse_newer(self._migrations)
        except sqlite3.OperationalError:
            return  # no file yet, or one that must be rolled back: it is looked at again once it is open

    async def _prepare(self) -> None:
        self.connection.row_factory = sqlite3.Row
        for pragma in pragmas(read_only=self._read_only):
            await self.execute(pragma)
        if not self._migrations:
            return
        version = await self._refuse_newer(self._migrations)
        for number, script in self._migrations.items():
            if number > version:
                async with self.transaction():
                    for statement in statements(script):
                        await self.execute(statement)
                    await self.execute(f"PRAGMA user_version = {number:d}")

    async def _refuse_newer(self, migrations: Mapping[int, str]) -> int:
        row = await self.fetch_one("PRAGMA user_version")
        version = int(row[0]) if row else 0
        newest = max(migrations)
        if version > newest:
            raise SchemaTooNew(
                f"{self.path.name} has schema {version}; this version knows {newest}", reason="newer_schema"
            )
        return version


def pragmas(*, read_only: bool) -> Iterable[str]:
    """Give what every connection of ours begins with."""
    yield "PRAGMA foreign_keys = ON"
    if read_only:
        yield "PRAGMA query_only = ON"
        return
    yield "PRAGMA auto_vacuum = INCREMENTAL"
    yield "PRAGMA journal_mode = WAL"
    yield "PRAGMA synchronous = FULL"


def statements(script: str) -> Iterable[str]:
    """Cut a script into its statements (``executescript`` would commit an open transaction)."""
    statement = ""
    for piece in re.split(r"(?<=;)", script):
        statement += piece
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
    if _HAS_SQL.search(re.sub(r"--[^\n]*", "", statement)):
        begins = statement.strip()[:60]
        raise ValueError(f"script ends within a statement: {begins!r} has no final semicolon")


_HAS_SQL = re.compile(r"\S")


def sqlite_version() -> str:
    """Give the version of the SQLite library."""
    return sqlite3.sqlite_version
