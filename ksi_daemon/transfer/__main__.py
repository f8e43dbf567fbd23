"""Run ``python -m ksi_daemon.transfer export FILE``, or ``import FILE``, for the home of ``KSI_HOME``.

Each prints JSON lines: how far it is, and in the end what came of it. Exit codes: 0 done, 1 refused.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import orjson

from ksi_common.clock import SystemClock
from ksi_common.errors import KSIError
from ksi_common.paths import Paths, default_home
from ksi_daemon.daemon import Daemon
from ksi_daemon.lock import home_lock
from ksi_daemon.settings import load_settings
from ksi_daemon.transfer.exporting import export
from ksi_daemon.transfer.importing import import_

EVERY = 1000
"""Positions between two words of how far it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one of the two; give the exit code."""
    parser = argparse.ArgumentParser(prog="ksi_daemon.transfer", description=__doc__)
    parser.add_argument("action", choices=("export", "import"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        _say((_export if options.action == "export" else _import)(options.file))
    except KSIError as error:
        _say({"error": error.to_wire()})
        return 1
    except OSError as error:
        _say({"error": {"code": "FAILED_PRECONDITION", "message": str(error)}})
        return 1
    return 0


def _export(file: Path) -> dict[str, object]:
    paths = Paths(default_home())
    done = asyncio.run(export(paths, file, clock=SystemClock(), progress=_progress()))
    return {"done": asdict(done)}


def _import(file: Path) -> dict[str, object]:
    paths = Paths(default_home())
    with home_lock(paths), redirect_stdout(sys.stderr):  # what plugins print is none of our words
        daemon = Daemon(paths, load_settings(paths))
        daemon.load()
        made = asyncio.run(import_(paths, daemon, file, clock=SystemClock(), progress=_progress()))
    export = made.export
    return {
        "done": {
            "events": export.head - export.after,
            "seq": export.head,
            "log_id": export.log_id,
            "missing": made.missing,
        }
    }


def _progress() -> Callable[[int, int], None]:
    told = 0

    def progress(seq: int, head: int) -> None:
        nonlocal told
        if seq >= told + EVERY:
            told = seq
            _say({"position": seq, "end": head})

    return progress


def _say(words: dict[str, object]) -> None:
    assert sys.__stdout__ is not None
    sys.__stdout__.buffer.write(orjson.dumps(words, option=orjson.OPT_APPEND_NEWLINE))
    sys.__stdout__.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
