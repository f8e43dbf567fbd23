"""`ksi help`: of commands, and of whatever the daemon that runs can be sent."""

from collections.abc import Sequence

import click

from ksi_client.cli.contributed import contributed
from ksi_client.cli.events import ls, show
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.writing import write, write_aligned
from ksi_common.errors import NotFound, Unavailable
from ksi_common.guessing import guess, nearest


@click.command()
@common_options
@click.argument("words", nargs=-1, metavar="[COMMAND | EVENT | NAMESPACE]")
@click.pass_context
def help_(ctx: click.Context, words: Sequence[str]) -> None:
    """Explain a command, an event, or everything that there is.

    \b
    ksi help                  the commands, and the events of the daemon that runs
    ksi help sub              a command
    ksi help state:set        an event
    ksi help state            the events of a namespace
    """  # noqa: D301
    invocation = ctx.ensure_object(Invocation)
    root = ctx.find_root()
    if not words and invocation.is_json:
        ctx.invoke(ls, namespace=None)
    elif not words:
        write(invocation, root.get_help())
        if commands := [(name, command.get_short_help_str()) for name, command in contributed().items()]:
            write(invocation, "\nCommands of plugins:")
            write_aligned(invocation, commands, indent="  ")
        write(invocation, "")
        _list_events(ctx)
    elif (explained := _explained(root, words)) is not None:
        write(invocation, explained)
    elif ":" in words[0]:
        ctx.invoke(show, event=words[0])
    else:
        _list_namespace(ctx, words[0])


def _list_namespace(ctx: click.Context, word: str) -> None:
    try:
        ctx.invoke(ls, namespace=word)
    except NotFound as error:
        root = ctx.find_root()
        commands = root.command.list_commands(root) if isinstance(root.command, click.Group) else []
        near = nearest(word, [*commands, *error.details["nearest"]], limit=2)
        raise NotFound(
            f"there is no command, event or namespace {word!r}",
            hint=guess(near, "ksi help lists them"),
            reason="no_events",
        ) from error


def _list_events(ctx: click.Context) -> None:
    try:
        ctx.invoke(ls, namespace=None)
    except Unavailable as error:
        hint = f"; {error.hint}" if error.hint else ""
        write(ctx.ensure_object(Invocation), f"Events:\n  {error.message}{hint}")


def _explained(root: click.Context, words: Sequence[str]) -> str | None:
    """Give the help of a command, which may be one of a group; None where there is none of that name."""
    command: click.Command | None = root.command
    context = root
    for word in words:
        if not isinstance(command, click.Group):
            raise click.NoSuchCommand(word, ctx=context)
        group, command = command, command.get_command(context, word)
        if command is None and group is not root.command:
            raise click.NoSuchCommand(word, possibilities=group.list_commands(context), ctx=context)
        if command is None and ":" not in word:
            command = contributed().get(word)
        if command is None:
            return None
        context = click.Context(command, info_name=word, parent=context)
    return context.get_help()
