"""`ksi daemon`: what daemon_control.py does, where there is no checkout."""

import click

from ksi_client.control.main import COMMANDS, main

ACTIONS = ", ".join((*COMMANDS, "logs"))


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help=f"The daemon itself: {ACTIONS}.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def daemon(arguments: tuple[str, ...]) -> int:
    """Start, stop and look at the daemon; ksi daemon --help says more."""
    try:
        return main(arguments, program="ksi daemon")
    except SystemExit as error:  # argparse, after its help or a usage error
        return int(error.code or 0)
