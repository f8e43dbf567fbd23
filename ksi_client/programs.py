"""What the daemon is started and stopped with: the programs of a checkout, or those that pip installed."""

import os
from pathlib import Path

from ksi_common.paths import default_home

_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 -- no pathlib: quick commands import this


def control(action: str, home: Path | None = None) -> str:
    """Give the command line for ``start`` or its like; it names the home where that is not the default."""
    found = of_checkout("daemon_control.py")
    which = "" if home is None or home == default_home() else f" --home {_quoted(home)}"
    return f"{f'python3 {found}' if found else 'ksi daemon'}{which} {action}"


def of_home(command: str, home: Path) -> str:
    """Give a command line of ``ksi`` or ``chat.py`` that reaches the daemon of that home."""
    return command if home == default_home() else f"KSI_HOME={_quoted(home)} {command}"


def of_checkout(program: str) -> str | None:
    """Give a program's path as it can be typed where this process is; None where there is no checkout."""
    path = os.path.join(_CHECKOUT, program)  # noqa: PTH118
    if not os.path.exists(path):  # noqa: PTH110
        return None
    try:
        return program if os.path.samefile(".", _CHECKOUT) else path  # noqa: PTH121
    except OSError:  # the working directory is gone
        return path


def _quoted(path: Path) -> str:
    from shlex import quote  # noqa: PLC0415 -- seldom needed, and quick commands import this

    return quote(str(path))
