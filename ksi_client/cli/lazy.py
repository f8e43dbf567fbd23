"""A group of commands that are imported when they are run."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """A group that knows where its commands are: ``module:attribute``, by name.

    ``otherwise`` is asked for others where a command has no place here, before that is an error.
    """

    def __init__(
        self,
        *args: Any,
        commands_by_name: Mapping[str, str],
        otherwise: Callable[[], Mapping[str, click.Command]] = dict,
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
                others = self._otherwise()
                if args[0] in others:
                    return args[0], others[args[0]], args[1:]
                raise click.NoSuchCommand(args[0], possibilities=[*self._places, *others], ctx=ctx)
        return super().resolve_command(ctx, args)
