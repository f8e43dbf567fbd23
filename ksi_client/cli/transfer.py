"""`ksi export` and `ksi import`: the log as a file, and a file as a log."""

import os
import subprocess
import sys
from typing import Any, Final

import click
import orjson

from ksi_client.cli.failures import FAILED
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import write, write_json

WORKER: Final = (sys.executable, "-P", "-m", "ksi_daemon.transfer")
"""``-P``: what lies in the working directory is not imported."""

_FILE: Final = click.Path(dir_okay=False, path_type=str)


@click.command("export")
@click.argument("file", type=_FILE)
@common_options
@click.pass_obj
def export_(invocation: Invocation, file: str) -> int:
    """Write the whole log into a file: CloudEvents 1.0, one on a line.

    \b
    ksi export log.jsonl
    grep state:changed log.jsonl | jq .data

    A daemon may run meanwhile. What was broken off is gone on with by the same command; a finished file is
    not written again.
    """  # noqa: D301
    done = _run(invocation, "export", file)
    if done is None:
        return FAILED
    _show(invocation, done, f"{done.get('lines', 0):,} events written, up to seq {done.get('seq', 0):,}")
    return 0


@click.command("import")
@click.argument("file", type=_FILE)
@common_options
@click.pass_obj
def import_(invocation: Invocation, file: str) -> int:
    """Read an exported log into $KSI_HOME, which must have none.

    \b
    ksi import log.jsonl

    Every line is looked at first: a file that is cut short, or says something else than was exported, is
    refused with the number of the line, and nothing is written. Ids, order, versions and times stay.
    """  # noqa: D301
    done = _run(invocation, "import", file)
    if done is None:
        return FAILED
    _show(invocation, done, f"{done.get('events', 0):,} events read, up to seq {done.get('seq', 0):,}")
    if done.get("missing"):
        click.echo(f"ksi import: tables lack {done['missing']:,} events, whose data was gone", err=True)
    return 0


def _run(invocation: Invocation, action: str, file: str) -> dict[str, Any] | None:
    """Run the worker and say how far it is; None where it failed, and that was said."""
    with subprocess.Popen([*WORKER, action, file], stdout=subprocess.PIPE, env=os.environ) as worker:  # noqa: S603 -- our own module
        for line in worker.stdout or ():
            said: dict[str, Any] = orjson.loads(line)
            if "done" in said:
                done: dict[str, Any] = said["done"]
                return done
            if "error" in said:
                _complain(invocation, action, said["error"])
            elif sys.stderr.isatty():
                click.echo(f"\r{said['position']:,} of {said['end']:,} ", err=True, nl=False)
    return None


def _complain(invocation: Invocation, action: str, error: dict[str, Any]) -> None:
    if invocation.is_json:
        write_json(invocation, {"error": error})
        return
    click.echo(f"ksi {action}: {one_line(error['message'])}", err=True)
    if error.get("hint"):
        click.echo(f"  try: {one_line(error['hint'])}", err=True)


def _show(invocation: Invocation, done: dict[str, Any], words: str) -> None:
    if invocation.is_json:
        write_json(invocation, done)
    else:
        write(invocation, words)
