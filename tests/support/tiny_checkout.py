"""A checkout that is set up in seconds: our bootstrap, wheels in a folder, programs that use them."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PYTHON: Final = str(getattr(sys, "_base_executable", sys.executable))
"""As a user has it: outside any environment."""
UV: Final = Path(sysconfig.get_path("scripts"), "uv")
PATIENCE_S: Final = 120.0
"""A net for a loaded machine, never a measure."""
MODULES: Final = 100
"""Of the package `wide`: to install so many takes long enough to be killed on the way."""

PROGRAM: Final = """\
import sys

before = set(sys.modules)
import bootstrap

bootstrap.enter(PROFILE)

new = sorted(set(sys.modules) - before)

import importlib.metadata
import wide

tiny = importlib.metadata.version("tiny")
print(f"{sys.prefix} wide {wide.total()} tiny {tiny} args {sys.argv[1:]} new {new}")
"""
ADD: Final = """\
import sys

import bootstrap

bootstrap.enter()

from requirements.install import add

add(sys.argv[1])
"""
WIDE: Final = f"""\
from importlib import import_module


def total() -> int:
    return sum(import_module(f"wide.m{{n}}").N for n in range({MODULES}))
"""
TOTAL: Final = sum(range(MODULES))
PROJECT: Final = """\
[build-system]
requires = ["builder"]
build-backend = "builder"

[project]
name = "tiny"
version = "{version}"
"""
BUILDER: Final = '''\
"""A build backend for editable installs, and no more."""

import os
import tomllib
import zipfile


def build_editable(folder, config_settings=None, metadata_directory=None):
    with open("pyproject.toml", "rb") as file:
        version = tomllib.load(file)["project"]["version"]
    info = f"tiny-{version}.dist-info"
    files = {
        "tiny.pth": os.getcwd(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: tiny\\nVersion: {version}\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: a\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(os.path.join(folder, f"tiny-{version}-py3-none-any.whl"), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return f"tiny-{version}-py3-none-any.whl"
'''


class TinyCheckout:
    """A checkout with `main.py`, which needs the profile run, `tests.py`, which needs dev, and `add.py`.

    The last one installs an extra by its name.
    Its index is a folder of wheels. Nothing that the machine says of pip or uv counts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.wheels = folder / "wheels"
        self.home = folder / "home"
        for made in (self.folder / "requirements", self.wheels, self.home, folder / "bin"):
            made.mkdir(parents=True)
        (folder / "bin" / "uv").symlink_to(UV)
        for name in ("bootstrap.py", "requirements/install.py"):
            shutil.copy(ROOT / name, self.folder / name)
        (self.folder / "add.py").write_text(ADD)
        for program, profile in (("main.py", "run"), ("tests.py", "dev")):
            (self.folder / program).write_text(PROGRAM.replace("PROFILE", repr(profile)))
        modules = {f"wide/m{n}.py": f"N = {n}\n" for n in range(MODULES)}
        self.run_pins = self.pin("wide", {"wide/__init__.py": WIDE, **modules}) + self.pin(
            "builder", {"builder.py": BUILDER}
        )
        self.dev_pins = self.run_pins + self.pin("checker", {"checker.py": ""})
        self.lock(self.run_pins, self.dev_pins)
        talker = self.pin("talker", {"talker.py": "SAYS = 'hello'\n"})
        singer = self.pin("singer", {"singer.py": ""})
        self.lock_extras(litellm=talker, claude=singer)
        self.set_version("1.0")

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    def pin(self, name: str, files: Mapping[str, str], version: str = "1.0") -> str:
        """Put a wheel into the index, and give the line of a lock that pins it."""
        info = f"{name}-{version}.dist-info"
        every = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        every[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*every, f"{info}/RECORD"])
        path = self.wheels / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for inner, text in every.items():
                wheel.writestr(inner, text)
        return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"

    def lock(self, run: str, dev: str) -> None:
        """Write both locks."""
        for name, pins in (("run", run), ("dev", dev)):
            (self.folder / "requirements" / f"{name}.lock").write_text(f"--only-binary :all:\n{pins}")

    def lock_extras(self, *, litellm: str, claude: str) -> None:
        """Write the lock of what only providers need."""
        text = f"--only-binary :all:\n# litellm\n{litellm}# claude\n{claude}"
        (self.folder / "requirements" / "providers.lock").write_text(text)

    def set_version(self, version: str) -> None:
        (self.folder / "pyproject.toml").write_text(PROJECT.format(version=version))

    def environ(self, *, uv: bool = True, **more: str) -> dict[str, str]:
        """Give the environment of a program: the folder of wheels is its index, for uv or for pip."""
        path = f"{self.folder.parent / 'bin'}:/usr/bin:/bin" if uv else "/usr/bin:/bin"
        index = {"UV_FIND_LINKS": str(self.wheels), "UV_OFFLINE": "1", "UV_CACHE_DIR": str(self.home / "uv")}
        if not uv:
            index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        return {"PATH": path, "HOME": str(self.home), "PIP_CONFIG_FILE": os.devnull, **index, **more}

    def start(
        self, program: str = "main.py", *arguments: str, environ: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        """Start a program of the checkout in a process group of its own, with a user's Python."""
        return subprocess.Popen(
            [PYTHON, program, *arguments], cwd=self.folder, env=environ, process_group=0,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, program: str = "main.py", *arguments: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the checkout to its end."""
        with self.start(program, *arguments, environ=environ or self.environ()) as process:
            stdout, stderr = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def files(self, pattern: str) -> Iterable[Path]:
        """Find what was installed."""
        return (self.venv / "lib").glob(f"python*/site-packages/{pattern}")
