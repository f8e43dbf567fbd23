"""What the daemon is started and stopped with: the programs of a checkout, or those that pip installed."""

import os

_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 -- no pathlib: quick commands import this


def control(action: str) -> str:
    """Give the command line for ``start``, ``stop``, ``restart``."""
    found = of_checkout("daemon_control.py")
    return f"{f'python3 {found}' if found else 'ksi daemon'} {action}"


def of_checkout(program: str) -> str | None:
    """Give a program's path as it can be typed where this process is; None where there is no checkout."""
    path = os.path.join(_CHECKOUT, program)  # noqa: PTH118
    if not os.path.exists(path):  # noqa: PTH110
        return None
    try:
        return program if os.path.samefile(".", _CHECKOUT) else path  # noqa: PTH121
    except OSError:  # the working directory is gone
        return path
