"""Measure what plugins cost: one that runs in Node.js beside one in the daemon, and one that misbehaves.

python benchmarks/plugins.py [--repetitions 5] [--seconds 1] [--markdown] [--only remote|trouble]

Needs `node` in PATH for the first. Ends with 1 where a bound is missed. How many instructions an event costs
with 5 plugins and with 100 is counted by tests/integration/test_many_plugins.py, not timed here.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from benchmarks import measure, peers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = Path(__file__).resolve().parent / "plugins_measured"
REMOTE_AT_LEAST = 0.5
TROUBLE_AT_MOST = 2.0
TROUBLES = {
    "raise": 50,
    "recur": 50,
    "nonsense": 50,
    "large": 2,
    "hang": 50,
    "deaf": 50,
    "leak": 50,
    "storm": 50,
    "sleep": 50,
}
"""What an in-process plugin can do wrong without ending the process, and how often a second it is asked to.

Answers of 20 MB are made in the loop whoever makes them: they are asked for less often.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A ratio in each repetition, and its bound."""

    name: str
    values: Sequence[float]
    bound: str
    holds: bool

    def cells(self) -> Sequence[str]:
        spread = f"{min(self.values):.2f}-{max(self.values):.2f}"
        verdict = "ok" if self.holds else "MISS"
        return self.name, f"x{statistics.median(self.values):.2f}", spread, self.bound, verdict


@contextmanager
def daemon() -> Iterator[peers.Peer]:
    """Run a daemon with the plugins that are measured."""
    with peers.ksi_daemon(settings={"KSI_PLUGINS_DIR": str(PLUGINS)}) as peer:
        yield peer


@contextmanager
def node(address: str) -> Iterator[None]:
    """Run the example handler in Node.js until it serves."""
    program = shutil.which("node")
    if program is None:
        raise SystemExit("node is not in PATH; --only trouble needs none")
    command = [program, ROOT / "examples" / "remote" / "serve.mjs", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if "serving" not in process.stdout.readline():
                raise SystemExit("the handler in Node.js does not serve")
            yield
        finally:
            process.kill()


@contextmanager
def troubled(address: str, event: str, per_s: int) -> Iterator[None]:
    """Ask for an event again and again beside the load, whatever comes of it."""
    command = [sys.executable, "-m", "benchmarks.plugins", "--ask", address, event, str(per_s)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield
        finally:
            process.kill()


async def ask(address: str, event: str, per_s: int) -> None:
    """Ask for an event at a steady rate until killed; read what comes, and keep none of it."""
    reader, writer = await asyncio.open_unix_connection(address, limit=32 * 1024 * 1024)

    async def read() -> None:
        while await reader.readline():
            pass

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        number = 0
        while True:
            frame = {"id": f"t{number}", "event": event, "timeout_ms": 1000}
            writer.write(orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE))
            if number == per_s // 5:
                print("asking", flush=True)
            number += 1
            await asyncio.sleep(1 / per_s)


def remote(repetitions: int, seconds: float) -> Iterator[Row]:
    """Compare a handler in Node.js with one in the daemon, 64 in flight."""
    options = ["--in-flight", 64, "--seconds", seconds]
    ratios = []
    with daemon() as peer, node(peer.address):
        for _ in range(repetitions):
            rate = {
                kind: measure.run_load("load.py", [peer.address, kind, *options], peer, one_cpu=False).rate
                for kind in ("here", "remote")
            }
            ratios.append(rate["remote"] / rate["here"])
            print(f"# in process {rate['here']:,.0f}/s, Node.js {rate['remote']:,.0f}/s", file=sys.stderr)
    held = statistics.median(ratios) >= REMOTE_AT_LEAST
    yield Row("handler in Node.js: of one in the daemon", ratios, f"at least x{REMOTE_AT_LEAST}", held)


def trouble(repetitions: int, seconds: float) -> Iterator[Row]:
    """Compare the p99 of another event beside each misbehaviour with that beside a well-behaved handler."""

    def p99(peer: peers.Peer, name: str, per_s: int) -> float:
        with troubled(peer.address, f"trouble:{name}", per_s):
            load = [peer.address, "here", "--in-flight", 16, "--seconds", seconds]
            return measure.run_load("load.py", load, peer, one_cpu=False).p99_us

    for name, per_s in TROUBLES.items():
        ratios = []
        for _ in range(repetitions):
            with daemon() as peer:
                well = p99(peer, "none", per_s)
                ratios.append(p99(peer, name, per_s) / well)
        held = statistics.median(ratios) < TROUBLE_AT_MOST
        yield Row(f"p99 beside a handler: {name}", ratios, f"under x{TROUBLE_AT_MOST:g}", held)


def main() -> int:
    """Measure and print; give 1 where a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--only", choices=("remote", "trouble"))
    parser.add_argument("--ask", nargs=3, metavar=("SOCKET", "EVENT", "PER_S"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        socket, event, per_s = options.ask
        asyncio.run(ask(socket, event, int(per_s)))
        return 0
    line = (
        "| {:<44} | {:>6} | {:<11} | {:<13} | {} |"
        if options.markdown
        else "{:<44} {:>6}  {:<11}  {:<13}  {}"
    )
    missed = 0
    for part in (remote, trouble):
        if options.only in {None, part.__name__}:
            for row in part(options.repetitions, options.seconds):
                print(line.format(*row.cells()), flush=True)
                missed += not row.holds
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
