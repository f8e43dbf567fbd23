"""`ksi plugin install` and `uninstall`: pip, for the environment that KSI is in."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import invalidate_caches
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import click

from ksi_client.cli.failures import FAILED
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.plugin.project import GROUP, python
from ksi_client.cli.writing import write
from ksi_client.programs import control
from ksi_common.errors import FailedPrecondition, NotFound

_RESTART = f"Restart the daemon: {control('restart')}"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("requirements", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def install(invocation: Invocation, requirements: tuple[str, ...]) -> int:
    """Install plugins with pip, into the environment of this KSI. Its options are passed on.

    \b
    ksi plugin install ksi-weather
    ksi plugin install -e ./ksi_weather
    """  # noqa: D301
    before = installed()
    if not _pip("install", *requirements):
        return FAILED
    after = installed()
    came = sorted(name for name in after if after[name] != before.get(name))
    if came:
        write(invocation, f"Installed: {', '.join(f'{name} ({after[name]})' for name in came)}. {_RESTART}")
    elif not after.keys() - before.keys():
        write(
            invocation,
            "Installed, but no plugin is new: has it an entry point of the group ksi? ksi plugin ls",
        )
    return 0


@click.command()
@click.argument("name")
@click.pass_obj
def uninstall(invocation: Invocation, name: str) -> int:
    """Remove the package of a plugin; its data stay.

    \b
    ksi plugin uninstall weather
    """  # noqa: D301
    distribution = {found: each.partition(" ")[0] for found, each in installed().items()}.get(name)
    if distribution is None:
        raise NotFound(
            f"no package of this environment has a plugin {name!r}",
            hint="a single file is removed from the folder plugins/",
            reason="no_plugin",
        )
    if distribution == GROUP:
        raise FailedPrecondition(
            f"{name} is a part of KSI", hint=f"ksi plugin disable {name}", reason="built_in"
        )
    if not _pip("uninstall", "--yes", distribution):
        return FAILED
    write(invocation, f"Uninstalled {distribution}. {_RESTART}")
    return 0


def installed() -> Mapping[str, str]:
    """Give the package and version of each plugin that is installed."""
    invalidate_caches()
    return {
        entry.name: f"{entry.dist.name} {entry.dist.version}"
        for entry in entry_points(group=GROUP)
        if entry.dist is not None
    }


def _pip(action: str, *arguments: str) -> bool:
    """Run pip, or uv where this environment has none; it writes for itself."""
    if find_spec("pip") is not None:
        command = python("-m", "pip", action, *arguments)
    elif uv := shutil.which("uv", path=None) or shutil.which("uv", path=str(Path(sys.executable).parent)):
        chosen = [argument for argument in arguments if argument != "--yes"]
        command = [uv, "pip", action, "--python", sys.executable, *chosen]
    else:
        raise FailedPrecondition(
            "this environment has neither pip nor uv", hint=f"{sys.executable} -m ensurepip", reason="no_pip"
        )
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603 -- what the user asked for
