"""A machine as a stranger has it: an environment with KSI from a wheel, and nothing of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parents[2]
LOCK: Final = ROOT / "requirements" / "dev.lock"
WANTED: Final = ("ksi", "pytest", "pytest-asyncio", "hatchling", "editables")
"""What the stranger has, with what these need: KSI, pytest, the tools that plugins are built with."""


class Stranger:
    """Commands in a folder outside the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / "venv"
        self.home = folder / "home" / "ksi"
        kept = {name: value for name, value in os.environ.items() if not _is_ours(name)}
        path = os.pathsep.join((str(self.venv / "bin"), kept["PATH"]))
        # The build tools are there already: nothing is fetched to build a plugin.
        own = {"KSI_HOME": str(self.home), "HOME": str(folder), "PIP_NO_BUILD_ISOLATION": "0"}
        self.environ = {**kept, **own, "PATH": path}

    def run(self, *command: str, cwd: Path | None = None, code: int = 0) -> str:
        """Run a command of the environment; give what it wrote."""
        done = subprocess.run(
            [str(self.venv / "bin" / command[0]), *command[1:]],
            cwd=cwd or self.folder, env=self.environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def set_up(self) -> None:
        """Make the environment: packages by the lock, KSI from a wheel that is built now."""
        _python("-m", "venv", str(self.venv))
        pins = self.folder / "pins.txt"
        pins.write_text("".join(pinned(closure(WANTED))))
        self.run("python", "-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", str(pins))
        wheels = self.folder / "wheels"
        _python("-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels))
        (wheel,) = wheels.glob("ksi-*.whl")
        self.run("python", "-m", "pip", "install", "-q", "--no-deps", str(wheel))

    def leave(self) -> None:
        """Uninstall what was installed, and remove what was made, but for KSI itself."""
        for folder in self.folder.glob("ksi_*"):
            self.run("pip", "uninstall", "-q", "-y", folder.name.replace("_", "-"))
            shutil.rmtree(folder)
        shutil.rmtree(self.home.parent, ignore_errors=True)


def closure(names: tuple[str, ...]) -> set[str]:
    """Give packages and all that they need here, by what this environment has installed."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = _normal(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for need in map(Requirement, distribution(name).requires or ()):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(need.name)
    return found - {"ksi"}


def pinned(names: set[str]) -> Iterator[str]:
    """Give the lines of the lock for some packages."""
    for entry in re.findall(r"^[\w.-]+==.*(?:\n    --hash.*)*\n", LOCK.read_text(), re.MULTILINE):
        if _normal(entry.partition("==")[0]) in names:
            yield entry


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_ours(name: str) -> bool:
    return name.startswith(("KSI_", "PYTHON", "COV", "PYTEST", "VIRTUAL_ENV"))
