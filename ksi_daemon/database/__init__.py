"""One SQLite file, one writer thread, a pool of readers."""

from ksi_daemon.database.core import Database
from ksi_daemon.database.transaction import Transaction

__all__ = ["Database", "Transaction"]
