"""The `ksi` command itself: it finds its subcommands when they are needed."""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Final

import click

from ksi_client.cli.failures import EXIT_CODES, INTERRUPTED, report, report_file, report_usage
from ksi_client.cli.invocation import FORMATS, Invocation, begin
from ksi_client.cli.lazy import LazyGroup
from ksi_client.cli.options import common_options
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import ReaderGone
from ksi_common.errors import KSIError
from ksi_common.standard_streams import make_usable

COMMANDS: Final[Mapping[str, str]] = {
    "daemon": "ksi_client.cli.daemon:daemon",
    "status": "ksi_client.cli.status:status",
    "call": "ksi_client.cli.call:call",
    "send": "ksi_client.cli.send:send",
    "sub": "ksi_client.cli.sub:sub",
    "events": "ksi_client.cli.events:events",
    "replay": "ksi_client.cli.replay:replay",
    "export": "ksi_client.cli.transfer:export_",
    "import": "ksi_client.cli.transfer:import_",
    "help": "ksi_client.cli.help:help_",
    "install": "ksi_client.cli.install:install",
    "contract": "ksi_client.cli.contract:contract",
    "plugin": "ksi_client.cli.plugin.group:plugin",
}

BROKEN_PIPE: Final = 141
"""What a shell reports of a command that SIGPIPE ended."""


def _of_plugins() -> Mapping[str, click.Command]:
    from ksi_client.cli.contributed import contributed  # noqa: PLC0415 -- only where a name is not known

    return contributed()


@click.group(
    cls=LazyGroup,
    commands_by_name=COMMANDS,
    otherwise=_of_plugins,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@common_options
def ksi() -> None:
    """Talk to KSI, the event daemon of this machine.

    \b
    ksi status                          is it well?
    ksi events ls                       everything that you can send
    ksi events show state:set           one of them
    ksi call state:set key=color value=green
    ksi sub 'state:*'                   watch, Ctrl-C to stop
    ksi plugin new weather              extend it
    """  # noqa: D301  (\b keeps click from joining the lines)
    named = os.environ.get("KSI_OUTPUT")
    if named and named not in FORMATS:
        raise click.UsageError(f"KSI_OUTPUT is {named!r}; it may be one of {', '.join(FORMATS)}")


def main() -> None:
    """Run `ksi`, and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run a command line; give the exit code."""
    make_usable()
    invocation = begin(argv)
    warnings.showwarning = _warn
    try:
        return _run(invocation)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except ReaderGone:
        # The interpreter must not try to flush what is left, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Say what the daemon says of something that is given up."""
    click.echo(f"warning: {one_line(str(message))}", err=True)


def _run(invocation: Invocation) -> int:
    try:
        code = ksi.main(list(invocation.argv), prog_name="ksi", standalone_mode=False, obj=invocation)
    except click.ClickException as error:
        return report_usage(invocation, error)
    except KSIError as error:
        return report(invocation, error)
    except OSError as error:  # a file or folder that somebody named, or a full disk
        return report_file(error)
    return code if isinstance(code, int) else 0
