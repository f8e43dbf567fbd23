"""The group itself: it finds its subcommands when they are needed."""

from collections.abc import Mapping
from typing import Final

import click

from ksi_client.cli.lazy import LazyGroup

HERE: Final = "ksi_client.cli.plugin"
COMMANDS: Final[Mapping[str, str]] = {
    "new": f"{HERE}.new:new",
    "check": f"{HERE}.check:check",
    "test": f"{HERE}.run_tests:test",
    "ls": f"{HERE}.listing:ls",
    "show": f"{HERE}.listing:show",
    "install": f"{HERE}.installing:install",
    "uninstall": f"{HERE}.installing:uninstall",
    "enable": f"{HERE}.switching:enable",
    "disable": f"{HERE}.switching:disable",
    "trace": f"{HERE}.trace:trace",
}


@click.group(cls=LazyGroup, commands_by_name=COMMANDS)
def plugin() -> None:
    """Write, check and look after plugins.

    \b
    ksi plugin new weather        a folder with a plugin that answers, and its test
    ksi plugin check              what is wrong with it, and where
    ksi plugin test               its tests
    ksi plugin install ./weather  for the daemon of this environment
    ksi plugin ls                 what is loaded, and what was refused
    """  # noqa: D301
