"""Tell whoever started this process how it fares: the datagrams of sd_notify(3)."""

import os
import socket
import time
from collections.abc import Mapping


def notify(*assignments: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send ``READY=1`` and the like to ``$NOTIFY_SOCKET``; False where nobody listens.

    Never waits and never raises: a daemon goes on when its manager is gone.
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # an abstract socket, as systemd writes it
        address = "\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.sendto("\n".join(assignments).encode(), address)
    except OSError:  # nobody is there, or there is no descriptor left to say it by
        return False
    return True


def ready(status: str) -> bool:
    """Say that the daemon serves."""
    return notify("READY=1", f"STATUS={status}")


def reloading() -> bool:
    """Say that settings are being read again; ``ready`` ends it."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(status: str) -> bool:
    """Say that the daemon drains."""
    return notify("STOPPING=1", f"STATUS={status}")


def watchdog() -> bool:
    """Say that the event loop turns."""
    return notify("WATCHDOG=1")


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Give the seconds between ``watchdog`` calls, half of what the manager allows; None where none is asked.

    A ``WATCHDOG_PID`` that names another process means that it was asked of that one.
    """
    allowed_us = environ.get("WATCHDOG_USEC", "")
    asked_of = environ.get("WATCHDOG_PID", str(os.getpid()))
    if not allowed_us.isdigit() or asked_of != str(os.getpid()):
        return None
    return int(allowed_us) / 2_000_000 or None
