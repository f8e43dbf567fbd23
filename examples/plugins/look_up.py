"""A command of `ksi`: `ksi look-up color` sends state:get with key=color."""

from collections.abc import Sequence

from ksi_daemon.plugin import Command, hookimpl


@hookimpl
def ksi_cli() -> Sequence[Command]:
    return [Command("look-up", "state:get", ["key"], "Show what is stored under a key.")]
