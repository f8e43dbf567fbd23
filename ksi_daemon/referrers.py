"""Who refers to files below the home: what is named by a row is verified, and is not collected."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from ksi_common.errors import DataLoss
from ksi_common.records import record
from ksi_daemon.database import Connection, Database

_PAGE: Final = 500


@record
class Referred:
    """Bytes that a row refers to; of a damaged row the types may be others."""

    owner: str
    """The plugin that keeps the row."""
    name: str
    """What the plugin calls it."""
    path: str
    offset: int
    length: int
    sha256: str


class Referrers:
    """The plugins whose rows name blobs or lines of files.

    A plugin that keeps blobs says so, before it serves: a blob that no row names is collected by retention
    an hour after it was last stored.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries: dict[str, str] = {}

    def add(self, owner: str, sql: str) -> None:
        """Have ``sql`` tell what ``owner`` refers to: rows of name, path, offset, length, sha256."""
        self._queries[owner] = sql

    async def silent(self) -> Sequence[str]:
        """Name those who told of their files at an earlier start and do not now: a plugin that is not loaded.

        What they refer to is not known, so nothing may be collected.
        """
        rows = await self._database.read("SELECT value FROM meta WHERE name = 'referrers'")
        known = set(rows[0][0].split()) if rows else set()
        owners = " ".join(sorted(known | self._queries.keys()))
        if self._queries.keys() - known:
            await self._database.write_apart(
                lambda tx: tx.execute("REPLACE INTO meta VALUES ('referrers', ?)", (owners,))
            )
        return sorted(known - self._queries.keys())

    async def all(self) -> AsyncIterator[Referred]:
        """Give everything that is referred to, page by page. A damaged row may be given twice.

        Raises DataLoss where so many rows are damaged that a page has no end to go on from.
        """
        for owner, sql in self._queries.items():
            # By key: rows that come and go between two pages move no other row from one page to another.
            page = f"WITH referred (name, path, start, length, sha256) AS ({sql}) SELECT * FROM referred "  # noqa: S608 -- a plugin's own
            order = f" ORDER BY name, path, start LIMIT {_PAGE}"
            # The first one without a key: a damaged row may have nothing for a name.
            rows = await self._read(page + order, ())
            while rows:
                for row in rows:
                    yield Referred(owner, *row)
                if len(rows) < _PAGE:
                    break
                after = next((row[:3] for row in reversed(rows) if _is_key(row)), None)
                if after is None:
                    raise DataLoss(f"too many rows of {owner} are damaged", reason="reference_corrupt")
                rows = await self._read(page + "WHERE (name, path, start) > (?, ?, ?)" + order, after)

    async def _read(self, sql: str, key: tuple[Any, ...]) -> Sequence[tuple[Any, ...]]:
        """Read rows that may be damaged: a text that is no UTF-8 is given with what stands for that."""

        def read(connection: Connection) -> Sequence[tuple[Any, ...]]:
            connection.text_factory = _readable
            try:
                return [tuple(row) for row in connection.execute(sql, key)]
            finally:
                connection.text_factory = str

        async with self._database.reader() as reader:
            return await reader.run(read)


def _readable(text: bytes) -> str:
    return text.decode(errors="replace")


def _is_key(row: Sequence[Any]) -> bool:
    """Tell whether the next page may begin after a row: its key is what it was."""
    name, path, start = row[:3]
    is_typed = isinstance(name, str | int) and isinstance(path, str) and isinstance(start, int)
    return is_typed and "\ufffd" not in f"{name}{path}"
