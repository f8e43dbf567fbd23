"""What the writer does beside its work: the indexes of the log, and its head beside the database."""

import sqlite3
from collections.abc import Callable

from ksi_daemon.database.head_file import HeadFile
from ksi_daemon.database.log_index import LogIndex
from ksi_daemon.database.log_writer import LogWriter


class Upkeep:
    """Look after what follows the log. Owned by the writer thread; raises sqlite3.Error only."""

    def __init__(self, connection: sqlite3.Connection, log: LogWriter, head: HeadFile | None) -> None:
        self._log = log
        self._head = head
        self._index = LogIndex(connection)

    @property
    def wanted(self) -> bool:
        """Tell whether there is something to do once the writer is idle."""
        head = self._head
        return self._index.wanted(self._log.seq) or (head is not None and head.behind(self._log.seq))

    def after_group(self) -> None:
        """Do what cannot wait, after a commit."""
        if self._head is not None:
            self._head.note(self._log.seq, self._log.chain)
        if self._index.overdue(self._log.seq):
            self._index.fill(self._log.seq)

    def when_idle(self, idle: Callable[[], bool]) -> None:
        """Do what waits, a slice at a time, for as long as ``idle``."""
        if self._head is not None:
            self._head.write(self._log.seq, self._log.chain)
        while self._index.wanted(self._log.seq) and idle():
            self._index.fill(self._log.seq)

    def close(self) -> None:
        """Leave the head as it is now."""
        if self._head is not None:
            self._head.write(self._log.seq, self._log.chain)
            self._head.close()
