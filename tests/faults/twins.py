"""Daemons with one fault each: a checker that does not see it proves nothing.

``python twins.py FAULT`` runs such a daemon in the place of ``python -m ksi_daemon``.
"""

import sqlite3  # noqa: TID251 -- the fault is made underneath the database modules
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import ksi_daemon.connection
import ksi_daemon.database.core
import ksi_daemon.keys.rows
from ksi_common.async_db import pragmas
from ksi_common.envelope import StoredEvent
from ksi_daemon.database.transaction import Transaction
from ksi_daemon.database.writer import Writer
from ksi_daemon.main import main
from tests.support.daemon_process import DaemonProcess


def faulty(fault: str, **options: Any) -> DaemonProcess:
    """Give a daemon with a fault of this module."""
    return DaemonProcess(program=(str(Path(__file__)), fault), **options)


class LateCommit(sqlite3.Connection):
    """A connection whose COMMIT returns at once, and is done when the next transaction begins."""

    _owed = False

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """Run a statement; the writer's commits wait."""
        if sql == "COMMIT" and isinstance(threading.current_thread(), Writer):
            self._owed = True
            return self.cursor()
        if sql == "BEGIN IMMEDIATE" and self._owed:
            self._owed = False
            super().execute("COMMIT")
        return super().execute(sql, *parameters)


def acknowledge_before_commit() -> None:
    """Answer when a group is ready to be committed."""
    sqlite3.connect = partial(sqlite3.connect, factory=LateCommit)  # type: ignore[assignment]


def never_sync() -> None:
    """Commit without waiting for the disk."""

    def unsafe(*, read_only: bool) -> Iterable[str]:
        yield from pragmas(read_only=read_only)
        yield "PRAGMA synchronous = OFF"

    ksi_daemon.database.core.pragmas = unsafe  # type: ignore[attr-defined]  # where the daemon looks it up


def never_full() -> None:
    """Keep for a client whatever it does not read."""
    vars(ksi_daemon.connection)["HIGH_WATER"] = 1 << 30


def forget_keys() -> None:
    """Do without the rows of idempotency keys."""
    ksi_daemon.keys.rows.add_in = _nothing
    ksi_daemon.keys.rows.answer_in = _nothing


def forget_answers() -> None:
    """Keep idempotency keys, and not what they were answered."""
    add_in: Callable[..., None] = ksi_daemon.keys.rows.add_in

    def add(*arguments: Any) -> None:
        add_in(*arguments[:-1], None)

    ksi_daemon.keys.rows.add_in = add  # type: ignore[assignment]
    ksi_daemon.keys.rows.answer_in = _nothing


def look_at_the_version_first() -> None:
    """Judge the expected version of an append before looking whether its events are there."""
    tell_raw = Transaction.tell_raw

    def tell(tx: Transaction, *arguments: Any, **options: Any) -> StoredEvent:
        stream, expected = options.get("stream"), options.get("expected_version")
        if stream is not None and isinstance(expected, int) and tx.version(stream) != expected:
            tx._log.next_version(stream, expected)  # raises
        return tell_raw(tx, *arguments, **options)

    Transaction.tell_raw = tell  # type: ignore[assignment, method-assign]


def _nothing(*_: Any, **__: Any) -> None: ...


FAULTS: Final = {
    fault.__name__: fault
    for fault in (
        acknowledge_before_commit,
        never_sync,
        never_full,
        forget_keys,
        forget_answers,
        look_at_the_version_first,
    )
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    sys.exit(main([]))
