"""`ksi replay`: make the state of the log again, and compare."""

import sys
from typing import Any

import click

from ksi_client.cli.failures import FAILED
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import write, write_json


@click.command()
@common_options
@click.pass_obj
def replay(invocation: Invocation) -> int:
    """Replay the whole log into a sandbox, and compare it with what is live.

    \b
    ksi replay
    ksi replay --json | jq .tables

    The sandbox is a database of its own in a temporary folder. Nothing that is live changes. Tables whose
    plugin says how they are made of the log are compared byte for byte, and the first difference is named.

    Exit codes: 0 they are the same, 1 they differ.
    """  # noqa: D301
    last: dict[str, Any] = {}
    with invocation.client() as client:
        steps = client.stream_raw("event:replay", {"into": "sandbox"}, timeout_s=invocation.timeout_s)
        for item in steps:
            last = dict(item)
            _show_progress(last)
    differ = [table for table in last["tables"] if table["difference"]]
    if invocation.is_json:
        write_json(invocation, last)
    else:
        _show(invocation, last)
    return FAILED if differ else 0


def _show_progress(step: dict[str, Any]) -> None:
    """Count on stderr, for a person."""
    if sys.stderr.isatty():
        end = "\n" if step["done"] else ""
        click.echo(f"\r{step['position']:,} of {step['end']:,}{end}", err=True, nl=False)


def _show(invocation: Invocation, last: dict[str, Any]) -> None:
    write(invocation, f"{last['applied']:,} events of {last['end']:,} positions were replayed")
    if last["missing"]:
        write(invocation, f"{last['missing']:,} positions are not in the log any more, or damaged")
    for table in last["tables"]:
        name = one_line(f"{table['plugin']}.{table['table']}")
        if table["difference"]:
            write(invocation, f"{name} differs after {table['rows']:,} rows: {one_line(table['difference'])}")
        else:
            write(invocation, f"{name} is the same: {table['rows']:,} rows")
