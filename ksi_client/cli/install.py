"""`ksi install`: get what only some providers of completions need."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Final

import click

from ksi_client.cli.options import common_options
from ksi_common.errors import FailedPrecondition
from ksi_common.paths import checkout

EXTRAS: Final = ("litellm", "claude")


@click.command()
@common_options
@click.argument("name", type=click.Choice(EXTRAS))
def install(name: str) -> None:
    """Install what the provider litellm, or claude-cli, needs.

    Exactly the versions of requirements/providers.lock, checked by their hashes, into an environment of
    their own beside .venv. A daemon that runs finds it by itself.

    \b
    ksi install litellm       150 services by their keys
    ksi install claude        the Claude CLI; it is not free software
    """  # noqa: D301
    if checkout() is None or find_spec("bootstrap") is None:
        raise FailedPrecondition(
            "this KSI is no checkout, and has no lock to install from",
            hint=f"install what {name} needs into {sys.prefix}, as you have installed KSI",
            reason="no_checkout",
        )
    import_module("requirements.install").add(name)
