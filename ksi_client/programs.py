"""What the daemon is started and stopped with: the programs of a checkout, or those that pip installed."""

import os

_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 -- no pathlib: quick commands import this


def control(action: str) -> str:
    """Give the command line for ``start``, ``stop``, ``restart``."""
    program = os.path.join(_CHECKOUT, "daemon_control.py")  # noqa: PTH118
    return f"{'python3 daemon_control.py' if os.path.exists(program) else 'ksi daemon'} {action}"  # noqa: PTH110
