"""Commands that plugins give: the daemon is asked for them where `ksi` has none of a name."""

import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from ksi_client.cli.call import ask
from ksi_client.cli.fields import read_words
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.raw import call_raw
from ksi_common.errors import KSIError

ASK_S: Final = 1.0


def contributed() -> Mapping[str, click.Command]:
    """Give the commands of plugins by name; none where there is no daemon to ask."""
    invocation = click.get_current_context().ensure_object(Invocation)
    try:
        reply = call_raw("plugin:commands", socket=invocation.socket, timeout_s=ASK_S)
    except KSIError:
        return {}
    return {command["name"]: _made(command) for command in reply["commands"]}


def _made(command: Mapping[str, Any]) -> click.Command:
    @click.pass_obj
    def send(invocation: Invocation, /, **values: str | None) -> None:
        words = [f"{name}={value}" for name, value in values.items() if value is not None]
        ask(invocation, command["event"], read_words(words, sys.stdin.buffer.read))

    made: click.Command = click.command(
        command["name"],
        short_help=command["summary"],
        help=f"{command['summary']}\n\nOf plugin {command['plugin']}: sends {command['event']}.",
    )(common_options(send))
    made.params[:0] = [
        click.Argument([name], required=name in command["required"]) for name in command["arguments"]
    ]
    return made
