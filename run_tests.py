#!/usr/bin/env python3
"""Run every check of this project, and stop at the first that fails.

A fresh clone needs nothing but Python 3.11 and pip: the tools come into .venv first.
"""

import sys

import bootstrap

bootstrap.enter("run" if {"-h", "--help"} & {*sys.argv} else "dev")

import argparse
import os
import secrets
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

from requirements.install import EXTRAS, add

ROOT = Path(__file__).resolve().parent
MIN_COVERAGE = 90

Command = list[str]


def main() -> int:
    """Run the checks that the command line asks for and return the exit code."""
    options, pytest_args = parse_arguments()
    os.chdir(ROOT)
    heed_ctrl_c()
    if options.providers or options.all:
        for extra in EXTRAS:
            add(extra)
    for name, command in lint_steps():
        code = run_quietly(name, command)
        if code:
            return code
    if options.fast:
        return run_pytest(["tests/unit", *pytest_args])[0]
    if pytest_args:  # a part of the tests says nothing about the coverage of the whole
        return run_pytest(pytest_args, full=options.all)[0]
    return run_pytest_with_coverage(full=options.all)


def heed_ctrl_c() -> None:
    """Have tests, and what they start, end at SIGINT, which a script's job in the background ignores."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into our options and those that go to pytest."""
    parser = argparse.ArgumentParser(
        description="Run lint, types, import rules, then pytest with branch coverage.",
        epilog="Anything else goes to pytest, and coverage is then not measured.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fast", action="store_true", help="lint and unit tests only")
    which.add_argument("--all", action="store_true", help="run slow tests at full scale, and --providers")
    parser.add_argument(
        "--providers", action="store_true", help="install litellm and the Claude CLI, and run their tests too"
    )
    return parser.parse_known_args()


def lint_steps() -> list[tuple[str, Command]]:
    """Name the static checks and their commands, cheapest first."""
    python = sys.executable
    scripts = sorted(
        str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.py"), *ROOT.glob("requirements/*.py"))
    )
    return [
        ("ruff check", [python, "-m", "ruff", "check", "."]),
        ("ruff format", [python, "-m", "ruff", "format", "--check", "."]),
        ("import rules", [str(Path(sysconfig.get_path("scripts")) / "lint-imports")]),
        ("mypy", [python, "-m", "mypy"]),
        ("mypy (scripts)", [python, "-m", "mypy", *scripts]),
    ]


def run_quietly(name: str, command: Command) -> int:
    """Run one step; print its name and time, and what it said only if it failed."""
    print(f"{name:<18}", end="", flush=True)
    begun = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    print(f"{'failed' if done.returncode else 'ok':<8}{time.monotonic() - begun:6.1f} s", flush=True)
    if done.returncode:
        print(done.stdout.decode(errors="replace"), flush=True)
    return done.returncode


def run_pytest(
    arguments: list[str], *, full: bool = False, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run pytest in two workers; return its exit code and its closing line, both already printed."""
    seed = f"--randomly-seed={secrets.randbelow(2**32)}"
    print(f"pytest {seed}", flush=True)  # pytest -q would not say it, and a failure may need it again
    scale = {"KSI_TEST_SCALE": "full"} if full else {}
    command = [sys.executable, "-m", "pytest", "-n", "2", seed, *arguments]
    closing = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, **scale, **(env or {})}
    ) as tests:
        assert tests.stdout is not None
        while True:
            chunk = os.read(tests.stdout.fileno(), 65536)
            if not chunk:
                break
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            closing = (closing + chunk.decode(errors="replace"))[-2000:]
    lines = closing.strip().splitlines()
    return tests.returncode, lines[-1] if lines else ""


def run_pytest_with_coverage(*, full: bool) -> int:
    """Run all tests under branch coverage, the daemons they start included, and hold its floor."""
    coverage = [sys.executable, "-m", "coverage"]
    # Both are absolute: the processes under test have working directories of their own.
    env = {
        "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"),
        "COVERAGE_FILE": str(ROOT / ".coverage"),
    }
    subprocess.run([*coverage, "erase"], check=True)
    code, closing = run_pytest([], full=full, env=env)
    if code:
        return code
    subprocess.run([*coverage, "combine", "--quiet"], check=True)
    code = subprocess.run([*coverage, "report", f"--fail-under={MIN_COVERAGE}"], check=False).returncode
    if not code:
        print(closing, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
