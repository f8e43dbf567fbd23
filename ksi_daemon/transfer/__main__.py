"""Run ``python -m ksi_daemon.transfer export FILE``, or ``import FILE``, for the home of ``KSI_HOME``.

Each prints JSON lines: how far it is, and in the end what came of it. Exit codes: 0 done, 1 refused.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ksi_common.clock import SystemClock
from ksi_common.errors import KSIError
from ksi_common.paths import Paths, default_home
from ksi_daemon.daemon import Daemon
from ksi_daemon.lock import home_lock
from ksi_daemon.own_output import Say, own_output
from ksi_daemon.settings import load_settings
from ksi_daemon.transfer.exporting import export
from ksi_daemon.transfer.importing import Progress, import_

EVERY = 1000
"""Positions between two words of how far it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one of the two; give the exit code."""
    parser = argparse.ArgumentParser(prog="ksi_daemon.transfer", description=__doc__)
    parser.add_argument("action", choices=("export", "import"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    with own_output() as say:
        try:
            say((_export if options.action == "export" else _import)(options.file, _progress(say)))
        except KSIError as error:
            say({"error": error.to_wire()})
            return 1
        except OSError as error:
            say({"error": {"code": "FAILED_PRECONDITION", "message": _said(error)}})
            return 1
    return 0


def _said(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def _export(file: Path, progress: Progress) -> dict[str, object]:
    paths = Paths(default_home())
    done = asyncio.run(export(paths, file, clock=SystemClock(), progress=progress))
    return {"done": asdict(done)}


def _import(file: Path, progress: Progress) -> dict[str, object]:
    paths = Paths(default_home())
    with home_lock(paths):
        daemon = Daemon(paths, load_settings(paths))
        daemon.load()
        made = asyncio.run(import_(paths, daemon, file, clock=SystemClock(), progress=progress))
    export = made.export
    return {
        "done": {
            "events": export.head - export.after,
            "seq": export.head,
            "log_id": export.log_id,
            "missing": made.missing,
        }
    }


def _progress(say: Say) -> Progress:
    told = 0

    def progress(seq: int, head: int) -> None:
        nonlocal told
        if seq >= told + EVERY:
            told = seq
            say({"position": seq, "end": head})

    return progress


if __name__ == "__main__":
    sys.exit(main())
