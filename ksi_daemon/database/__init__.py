"""One SQLite file, one writer thread, a pool of readers."""

from sqlite3 import Connection, Error

from ksi_daemon.database.core import Database
from ksi_daemon.database.transaction import Telling, Transaction, Unit

__all__ = ["Connection", "Database", "Error", "Telling", "Transaction", "Unit"]
