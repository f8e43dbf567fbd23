"""`ksi send`: tell an event."""

import sys
from typing import Any

import click

from ksi_client.cli.fields import read_words
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.writing import write_fields


@click.command()
@click.argument("event")
@click.argument("words", nargs=-1, metavar="[KEY=TEXT | KEY:=JSON | -]...")
@click.option("--id", "event_id", help="Its id: the same one twice is stored once.")
@click.option("--ephemeral", is_flag=True, help="Tell those who listen now, and do not store it.")
@common_options
@click.pass_obj
def send(
    invocation: Invocation, event: str, words: tuple[str, ...], *, event_id: str | None, ephemeral: bool
) -> None:
    """Tell an event to everyone who follows it. Done once it is on disk.

    \b
    ksi send build:finished branch=main ok:=true
    make 2>&1 | jq -Rs '{log: .}' | ksi send build:finished -

    The names that plugins declare are theirs to tell. KEY=TEXT gives a string, KEY:=JSON any value,
    - reads an object from stdin.
    """  # noqa: D301
    fields = read_words(words, sys.stdin.buffer.read)
    request: dict[str, Any] = {"event": event, "data": fields.data({})}
    request |= {"event_id": event_id} if event_id else {}
    request |= {"ephemeral": True} if ephemeral else {}
    with invocation.client() as client:
        write_fields(invocation, client.call_raw("event:publish", request))
