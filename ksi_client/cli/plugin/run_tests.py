"""`ksi plugin test`: a plugin's tests, as if it was installed."""

import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click

from ksi_client.cli.invocation import Invocation
from ksi_client.cli.plugin.project import environment, python, read_project
from ksi_common.errors import FailedPrecondition, NotFound

AS_A_PACKAGE: Final = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
"""What the pyproject.toml of `ksi plugin new` has; beside a single file there need be none."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("path", type=click.Path(path_type=Path), default=".")
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def test(invocation: Invocation, path: Path, pytest_arguments: tuple[str, ...]) -> int:
    """Run the tests of a plugin, with pytest. It need not be installed.

    \b
    ksi plugin test
    ksi plugin test . -k hello -x
    ksi plugin test hello.py      a single file, by test_hello.py or tests/test_hello.py beside it

    Each test that takes the fixture `ksi` gets a daemon of its own in the test's process.
    """  # noqa: D301
    del invocation  # pytest writes
    if str(path).startswith("-"):
        path, pytest_arguments = Path(), (str(path), *pytest_arguments)
    project = read_project(path)
    missing = [name for name in ("pytest", "pytest_asyncio") if find_spec(name) is None]
    if missing:
        raise FailedPrecondition(
            f"the tests need {' and '.join(missing)}", hint="pip install 'ksi[test]'", reason="not_installed"
        )
    if not project.tests:
        raise NotFound(f"there are no tests in {project.path}", hint="tests/test_*.py", reason="no_tests")
    folder = project.path if project.path.is_dir() else project.path.parent
    targets = [] if project.path.is_dir() else [*AS_A_PACKAGE, *map(str, project.tests)]
    with environment(project) as environ:
        done = subprocess.run(
            python("-m", "pytest", *targets, *pytest_arguments), cwd=folder, env=environ, check=False
        )
    return done.returncode
