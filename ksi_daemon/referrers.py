"""Who refers to files below the home: what is named by a row is verified, and is not collected."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from ksi_daemon.database import Database

_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Referred:
    """Bytes that a row refers to."""

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

    async def all(self) -> AsyncIterator[Referred]:
        """Give everything that is referred to, page by page."""
        for owner, sql in self._queries.items():
            start = 0
            page = f"SELECT * FROM ({sql}) ORDER BY 1 LIMIT {_PAGE} OFFSET ?"  # noqa: S608 -- a plugin's own
            while rows := await self._database.read(page, (start,)):
                for row in rows:
                    yield Referred(owner, *row)
                start += len(rows)
