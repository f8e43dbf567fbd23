"""`ksi call`: ask, and show the reply."""

import sys
from collections.abc import Mapping
from typing import Any

import click

from ksi_client.cli.fields import Words, read_words
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.writing import write_fields, write_json_line
from ksi_client.raw import RawClient
from ksi_common.errors import InvalidArgument, NotFound


@click.command()
@click.argument("event")
@click.argument("words", nargs=-1, metavar="[KEY=TEXT | KEY:=JSON | -]...")
@common_options
@click.pass_obj
def call(invocation: Invocation, event: str, words: tuple[str, ...]) -> None:
    """Ask for an event to be handled, and show the reply.

    \b
    ksi call system:health
    ksi call state:set key=color value=green
    ksi call state:set key=limits value:='{"max": 3}'
    echo '{"key": "color"}' | ksi call state:get -

    KEY=TEXT gives a string, unless the event takes none there: limit=5 is then a number. KEY:=JSON
    gives any value. - reads an object from stdin. The items of a stream are shown as JSON lines.
    """  # noqa: D301  (\b keeps click from joining the lines)
    fields = read_words(words, sys.stdin.buffer.read)
    try:
        ask(invocation, event, fields)
    except InvalidArgument as error:
        explained = f"ksi events show {event}"
        if error.hint is None:
            error.hint = explained
        elif not error.hint.startswith((explained, "system:help ")):
            error.hint = f"{error.hint}   |   {explained}"
        raise


def ask(invocation: Invocation, event: str, fields: Words) -> None:
    """Ask, and show the reply, or the items of a stream."""
    with invocation.client() as client:
        described = describe(client, event)
        data = fields.data(described.get("schema", {}))
        if described.get("kind") == "stream":
            for item in client.stream_raw(event, data, timeout_s=invocation.timeout_s):
                write_json_line(invocation, item)
        else:
            write_fields(invocation, client.call_raw(event, data))


def describe(client: RawClient, event: str) -> Mapping[str, Any]:
    """Give what the daemon says of an event; nothing of one that only a hook knows."""
    try:
        return client.call_raw("system:help", {"event": event}, safe=True)
    except NotFound:
        return {}
