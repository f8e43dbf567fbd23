"""Daemons whose consumers have one fault each: a checker that does not see it proves nothing.

``python consumer_twins.py FAULT`` runs such a daemon in the place of ``python -m ksi_daemon``.
"""

import sys
from pathlib import Path
from typing import Any, Final

import ksi_daemon.consumers.rows
from ksi_daemon.consumers.ledger import Ledger
from ksi_daemon.database import Transaction
from ksi_daemon.main import main
from tests.support.daemon_process import DaemonProcess


def faulty(fault: str, **options: Any) -> DaemonProcess:
    """Give a daemon with a fault of this module."""
    return DaemonProcess(program=(str(Path(__file__)), fault), **options)


def settle_what_is_read() -> None:
    """Count as done whatever was read, acknowledged or not."""
    Ledger.position_without = _read_to  # type: ignore[assignment,method-assign]


def share_without_keys() -> None:
    """Give a key's next event while the one before is in flight."""
    Ledger._is_blocked = lambda *_: False  # type: ignore[method-assign]


def forget_what_is_done() -> None:
    """Answer an acknowledgement, and keep nothing of it."""
    ksi_daemon.consumers.rows.settle = lambda *_: None


def leave_the_cursor_behind() -> None:
    """Let the effect of a durable subscriber commit without its cursor, which is not looked at either."""

    def advance(tx: Transaction, *_: Any) -> bool:
        return tx is not None

    ksi_daemon.consumers.rows.advance = advance  # type: ignore[assignment]


def _read_to(ledger: Ledger, gone: object) -> int:
    del gone
    return ledger.read_to


FAULTS: Final = {
    fault.__name__: fault
    for fault in (settle_what_is_read, share_without_keys, forget_what_is_done, leave_the_cursor_behind)
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    sys.exit(main([]))
