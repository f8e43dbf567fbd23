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
@click.option("--keep", is_flag=True, help="Let the sandbox answer what is safe, until Ctrl-C.")
@common_options
@click.pass_obj
def replay(invocation: Invocation, *, keep: bool) -> int:
    """Replay the log in a sandbox, and compare it with what is live.

    \b
    ksi replay
    ksi replay --json | jq .tables
    ksi replay --keep

    The sandbox is a daemon in a home of its own, with its effects off. Nothing that is live changes. Tables
    whose plugin says how they are made of the log are compared byte for byte, and the first difference is
    named; the others are listed.

    Exit codes: 0 they are the same, 1 they differ.
    """  # noqa: D301
    last: dict[str, Any] = {}
    with invocation.client() as client:
        data = {"into": "sandbox", "keep": keep}
        for item in client.stream_raw("event:replay", data, timeout_s=invocation.timeout_s):
            last = dict(item)
            _show_progress(last)
            if last["done"]:
                _show(invocation, last)
    return FAILED if any(table["difference"] for table in last["tables"]) else 0


def _show_progress(step: dict[str, Any]) -> None:
    """Count on stderr, for a person."""
    if sys.stderr.isatty():
        end = "\n" if step["done"] else ""
        click.echo(f"\r{step['position']:,} of {step['end']:,}{end}", err=True, nl=False)


def _show(invocation: Invocation, last: dict[str, Any]) -> None:
    if invocation.is_json:
        write_json(invocation, last)
        return
    write(invocation, f"{last['applied']:,} events of {last['end']:,} positions were replayed")
    if last["missing"]:
        write(invocation, f"{last['missing']:,} positions are not in the log any more, or damaged")
    for table in last["tables"]:
        name = one_line(f"{table['plugin']}.{table['table']}")
        if table["difference"]:
            write(invocation, f"{name} differs after {table['rows']:,} rows: {one_line(table['difference'])}")
        else:
            write(invocation, f"{name} is the same: {table['rows']:,} rows")
    for table in last["not_compared"]:
        write(invocation, one_line(f"{table['plugin']}.{table['table']} is not made of the log"))
    if last["socket"]:
        write(invocation, f"the sandbox answers what is safe at {one_line(last['socket'])}, until Ctrl-C")
