"""A group of commands that are imported when they are run."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """A group that knows where its commands are: ``module:attribute``, by name.

    ``otherwise`` is asked for a command that has no place here, before that is an error.
    """

    def __init__(
        self,
        *args: Any,
        commands_by_name: Mapping[str, str],
        otherwise: Callable[[str], click.Command | None] = lambda _name: None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self._places = commands_by_name
        self._otherwise = otherwise

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's)
        """Name the commands, in the order that help shows."""
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in self._places:
            return None
        module, _, name = self._places[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; where there is none, name those that are nearly called so."""
        with suppress(IndexError):
            if args[0] not in self._places and not args[0].startswith("-"):
                command = self._otherwise(args[0])
                if command is not None:
                    return args[0], command, args[1:]
                raise click.NoSuchCommand(args[0], possibilities=self._places, ctx=ctx)
        return super().resolve_command(ctx, args)
