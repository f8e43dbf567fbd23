"""Reads on the loop: one row by its key takes microseconds, a hop to another thread ten times that."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ksi_daemon.database.errors import translate


class Peeking:
    """A connection of the loop's own, for what must be known before anything may wait.

    For one row by a unique key, whose pages are in memory or one read away: nothing else runs meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=1.0
        )

    def row(self, sql: str, parameters: Sequence[Any]) -> tuple[Any, ...] | None:
        """Give the row, as it is committed; the snapshot ends with this."""
        try:
            cursor = self._connection.execute(sql, parameters)
            row: tuple[Any, ...] | None = cursor.fetchone()
            cursor.close()
        except sqlite3.Error as error:
            raise translate(error) from error
        return row

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
