"""What SQLite says, in KSI's words."""

import errno
import sqlite3
from pathlib import Path

from ksi_common.errors import DeadlineExceeded, FailedPrecondition, OperationalError, Unavailable

FSYNC_FAILED = frozenset((sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC))
"""After these nobody knows what is on disk; a second fsync may lie. The daemon must stop."""

_STORE = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
    )
)

_UNFIT = frozenset((sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT))


class StoreUnavailable(Unavailable):
    """Nothing can be stored at present."""


class UnitInterrupted(DeadlineExceeded):
    """A unit of work held the writer for too long."""


def is_fsync_failure(error: BaseException) -> bool:
    """Tell whether the disk refused to promise anything."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) in FSYNC_FAILED


def file_refused(error: OSError) -> StoreUnavailable:
    """Give the KSIError for bytes beside the database that could not be put on disk.

    Whatever the errno: it says nothing of the database, which may be on a disk that is well.
    """
    hint = "free space on the disk" if error.errno == errno.ENOSPC else None
    refused = StoreUnavailable(f"cannot store: {error}", reason="store_unavailable", hint=hint)
    refused.__cause__ = error
    return refused


def file_removed() -> StoreUnavailable:
    """Give the KSIError for a database that was taken from its place while it is in use."""
    return StoreUnavailable(
        "cannot store: the file of the database was moved, removed or replaced",
        reason="store_unavailable",
        hint="put it back; until KSI is restarted, what it holds can be read",
    )


def not_opened(error: sqlite3.Error, file: Path) -> Exception:
    """Give the KSIError for a file that is no database, or none that can be read; others as they are."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _UNFIT:
        return error
    unfit = FailedPrecondition(
        f"cannot open {file}: {error}", hint="move it away, or put a good one in its place"
    )
    unfit.__cause__ = error
    return unfit


def translate(error: Exception) -> Exception:
    """Give the KSIError for what SQLite refused to do; others (a bug in a unit's SQL) stay as they are."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0)
    translated: OperationalError
    if code == sqlite3.SQLITE_INTERRUPT:
        translated = UnitInterrupted("unit of work interrupted", reason="unit_interrupted")
    elif code & 0xFF in _STORE:
        hint = "free space on the disk of the database" if code == sqlite3.SQLITE_FULL else None
        translated = StoreUnavailable(f"cannot store: {error}", reason="store_unavailable", hint=hint)
    else:
        return error
    translated.__cause__ = error
    return translated
