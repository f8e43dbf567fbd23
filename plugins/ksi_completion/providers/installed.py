"""Where the packages are that only one provider needs: in an environment of its own, beside KSI's."""

import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ksi_common.paths import checkout

LOOK_AGAIN_S: Final = 2.0
"""How old it may be that something was not found."""


def advice(command: str, *packages: str) -> str:
    """Say what installs something: a command of the checkout, or pip where KSI itself came by that."""
    if checkout() is not None:
        return f"{command} installs it"
    pip = f"{sys.executable} -m pip install"
    return " && ".join(f"{pip} {package}" for package in packages) + " installs it"


def environment(name: str) -> Path:
    """Give the folder of the environment that `ksi install NAME` makes."""
    return Path(f"{sys.prefix}-{name}")


def python_with(name: str, package: str) -> str | None:
    """Find a Python that can import a package: its own environment's, or this one."""
    python = environment(name) / "bin" / "python"
    if any(environment(name).glob(f"lib/python3*/site-packages/{package}/__init__.py")) and python.exists():
        return str(python)
    spec = find_spec(package)
    # A folder of that name, without a package in it, has no origin.
    return sys.executable if spec and spec.origin else None


def packaged(name: str, package: str, path: str) -> str | None:
    """Find a file of a package, in its own environment or in this one; nothing is imported."""
    folders = list(environment(name).glob(f"lib/python3*/site-packages/{package}"))
    spec = find_spec(package)
    folders += map(Path, (spec.submodule_search_locations if spec else None) or ())
    return next((str(folder / path) for folder in folders if (folder / path).is_file()), None)


def on_path(command: str) -> str | None:
    """Find a program as a shell would."""
    return shutil.which(command)


class Found:
    """The answer of a search: kept for good where it found something, for a moment where it did not."""

    def __init__(self, search: Callable[[], str | None]) -> None:
        self._search = search
        self._found: str | None = None
        self._next = 0.0

    def get(self) -> str | None:
        """Give what was found."""
        if self._found is None and (now := time.monotonic()) >= self._next:
            self._found, self._next = self._search(), now + LOOK_AGAIN_S
        return self._found
