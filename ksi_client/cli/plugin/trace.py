"""`ksi plugin trace`: what a plugin answers and tells, as it does."""

import sys
from itertools import islice
from typing import Any

import click

from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import text_of, write, write_json_line


@click.command()
@click.argument("name")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many.")
@common_options
@click.pass_obj
def trace(invocation: Invocation, name: str, count: int | None) -> None:
    """Follow what a plugin answers and tells, with what came of it.

    \b
    ksi plugin trace weather
    ksi plugin trace weather -o jsonl | jq 'select(.code != "OK")'

    Requests that change nothing are shown, too, which the log does not have. Ctrl-C stops.
    """  # noqa: D301
    with invocation.client() as client:
        items = client.stream_raw("plugin:trace", {"plugin_name": name}, timeout_s=invocation.timeout_s)
        next(items)  # it has begun
        if sys.stderr.isatty():
            click.echo(f"Following {name}; Ctrl-C stops.", err=True)
        for item in islice(items, count):
            _show(invocation, item)


def _show(invocation: Invocation, traced: dict[str, Any]) -> None:
    if invocation.is_json:
        write_json_line(invocation, traced)
        return
    what = f"{traced['took_ms']:.1f} ms  {traced['code']}" if traced["kind"] == "answered" else traced["kind"]
    line = (traced["time"][11:23], traced["event"], what, text_of(traced["data"]))
    if invocation.format == "plain":
        write(invocation, "\t".join(map(one_line, line)))
        return
    time, event, what, data = map(one_line, line)
    color = {"OK": "green", "told": None}.get(traced["code"] or "told", "red")
    time, event, what = (
        click.style(time, dim=True), click.style(event, bold=True), click.style(what, fg=color),
    )  # fmt: skip
    write(invocation, f"{time}  {event}  {what}  {data}")
    if traced["missed"]:
        click.echo(f"{traced['missed']} more came at once, and are not shown", err=True)
