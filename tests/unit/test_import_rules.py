"""The rules about imports bite: each is shown a violation and must name it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ksi_common", "ksi_client", "ksi_daemon", "ksi_state", "ksi_events")


def ruff_says(path: str, code: str) -> str:
    """Check a snippet as if it stood at `path` of this repository."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "TID251",
        "--no-cache",
        "--output-format",
        "concise",
    ]
    done = subprocess.run(
        [*command, "--stdin-filename", path, "-"],
        input=code,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stderr == "" or done.returncode < 2, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "path",
    ["ksi_daemon/router.py", "ksi_client/session.py", "plugins/ksi_state/store.py", "ksi_common/ids.py"],
)
@pytest.mark.parametrize("code", ["import sqlite3\n", "from sqlite3 import connect\n"])
def test_sqlite3_is_refused_outside_the_database_modules(path: str, code: str) -> None:
    assert "`sqlite3` is banned" in ruff_says(path, code)


@pytest.mark.parametrize("path", ["ksi_daemon/database/core.py", "ksi_common/async_db.py"])
def test_sqlite3_is_allowed_in_the_database_modules(path: str) -> None:
    assert "TID251" not in ruff_says(path, "import sqlite3\n")


@pytest.mark.parametrize("name", ["create_task", "ensure_future", "gather", "wait_for"])
def test_tasks_without_an_owner_are_refused(name: str) -> None:
    assert f"`asyncio.{name}` is banned" in ruff_says(
        "ksi_daemon/router.py", f"import asyncio\n\nasyncio.{name}()\n"
    )


def test_tasks_of_a_group_are_allowed() -> None:
    code = "async def serve(tg, work):\n    tg.create_task(work())\n"
    assert "TID251" not in ruff_says("ksi_daemon/router.py", code)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Lay out packages of our names under our contracts, with the imports that these except by name."""
    for package in PACKAGES:
        write(tmp_path, package, "")
    for module in ("ksi_daemon.router", "ksi_daemon.plugin"):
        write(tmp_path, module, "")
    for importer, imported in excepted_imports():
        write(tmp_path, imported, "")
        write(tmp_path, importer, f"import {imported}\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def excepted_imports() -> Iterator[tuple[str, str]]:
    """Yield the exceptions without a wildcard: import-linter wants each to occur."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for contract in settings["tool"]["importlinter"]["contracts"]:
        for exception in contract.get("ignore_imports", []):
            importer, _, imported = exception.partition(" -> ")
            if "*" not in exception:
                yield importer, imported


def write(root: Path, module: str, code: str) -> None:
    """Add code to a module, which is a package where it has no dot."""
    path = root / module.replace(".", "/")
    path = path.with_suffix(".py") if "." in module else path / "__init__.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(code)


def contracts_hold(packages: Path) -> bool:
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    env = {**os.environ, "PYTHONPATH": str(packages)}
    done = subprocess.run(
        [lint, "--no-cache"], cwd=packages, env=env, capture_output=True, text=True, check=False
    )
    assert "Contracts" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("ksi_common", "ksi_daemon"),
        ("ksi_common", "ksi_client"),
        ("ksi_client", "ksi_daemon"),
        ("ksi_daemon", "ksi_state"),
        ("ksi_daemon", "ksi_client"),
        ("ksi_state", "ksi_events"),
        ("ksi_state", "ksi_daemon.router"),
        ("ksi_events", "ksi_client"),
    ],
)
def test_an_import_across_the_borders_is_refused(packages: Path, importer: str, imported: str) -> None:
    write(packages, f"{importer}.core", f"import {imported}\n")
    assert not contracts_hold(packages)


def test_imports_within_the_borders_are_allowed(packages: Path) -> None:
    """Anything may import ksi_common, and a plugin the daemon's public face."""
    write(packages, "ksi_state.store", "import ksi_common\nimport ksi_daemon.plugin\n")
    write(packages, "ksi_client.core", "import ksi_common\n")
    write(packages, "ksi_daemon.plugin", "import ksi_common\nimport ksi_daemon.router\n")
    assert contracts_hold(packages)


def test_a_daemon_loads_neither_rich_nor_what_only_mistakes_need() -> None:
    look = "import sys, ksi_daemon.main; print(sorted({'rich', 'difflib', 'ctypes'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
