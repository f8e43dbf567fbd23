"""What daemon_control.py and ksi cost as whole processes, and how soon the daemon is back after a crash.

python benchmarks/programs.py [--repetitions 5] [--markdown]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.waits import ROOT, Checkout, Row, show
from ksi_client import call_raw
from ksi_common.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOK_S = 0.005


def looked_at(checkout: Checkout, repetitions: int) -> Iterator[Row]:
    """Time what looks at a daemon that runs."""
    for words, at_most_s in (
        (("daemon_control.py", "status"), 0.15),
        (("daemon_control.py", "health"), 0.15),
        (("ksi", "status"), 0.15),
        (("ksi", "call", "system:health"), 0.25),
    ):
        times = [checkout.run(*words) for _ in range(repetitions)]
        yield Row(f"{' '.join(words)}: whole process", times, at_most_s)


def started_and_stopped(checkout: Checkout, repetitions: int) -> Iterator[Row]:
    """Time starts to the first answer, and stops with nothing to do."""
    starts, stops = [], []
    for _ in range(repetitions):
        stops.append(checkout.run("daemon_control.py", "stop"))
        starts.append(checkout.run("daemon_control.py", "start"))
    yield Row("daemon_control.py start: whole process", starts, 2.0)
    yield Row("daemon_control.py stop, idle: whole process", stops, 1.0)


def crashed(checkout: Checkout, repetitions: int) -> Row:
    """Time from the daemon's death by SIGSEGV to the first answer of the next one."""
    socket = checkout.home / "run" / "daemon.sock"
    times = []
    for _ in range(repetitions):
        pid = call_raw("system:health", socket=socket)["pid"]
        began = time.perf_counter()
        os.kill(pid, signal.SIGSEGV)
        while not _answers(socket, other_than=pid):
            time.sleep(LOOK_S)
        times.append(time.perf_counter() - began)
        checkout.run("daemon_control.py", "restart")  # a supervisor that has not seen a crash
    return Row("back after SIGSEGV: to the next answer", times, 2.0)


def _answers(socket: Path, *, other_than: int) -> bool:
    try:
        return bool(call_raw("system:health", socket=socket)["pid"] != other_than)
    except Unavailable:
        return False


def main() -> int:
    """Measure everything; 1 where a figure is above its bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ksi-") as name:
        checkout = Checkout(ROOT, sys.executable, Path(name) / "var")
        checkout.run("daemon_control.py", "start")
        try:
            rows = [*looked_at(checkout, options.repetitions)]
            rows += started_and_stopped(checkout, options.repetitions)
            rows.append(crashed(checkout, options.repetitions))
        finally:
            checkout.run("daemon_control.py", "stop")
    show(rows, markdown=options.markdown)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
