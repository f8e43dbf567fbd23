"""Measure KSI beside its peers, interleaved in one run, and hold the ratios against what it must show.

python benchmarks/spine.py                  five repetitions of everything, about five minutes
python benchmarks/spine.py --quick          three short ones
python benchmarks/spine.py --only health    only what that word is found in, and what it is held against
python benchmarks/spine.py --long           with the growth over 1,000,000 requests
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import orjson

from benchmarks import measure, peers, report
from benchmarks.claims import (
    BOUNDS,
    CASES,
    CATCH_UP,
    CLAIMS,
    FANOUTS,
    FIRST_ANSWER,
    GROWTH,
    IDLE,
    SHAPES,
    Case,
)
from benchmarks.report import Results

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

    from benchmarks.claims import Bound
    from benchmarks.measure import Sample
    from benchmarks.peers import Peer

SETTLE_S = 0.5
HALF = 500_000

# subject: its server, the script that loads it, and the script's word for it.
SUBJECTS: Mapping[str, tuple[str, str, str]] = {
    "echo": ("echo", "load.py", "echo"),
    "health": ("ksi", "load.py", "health"),
    "publish": ("ksi", "load.py", "publish"),
    "floor": ("floor", "load.py", "publish"),
    "set": ("ksi", "load.py", "set"),
    "get": ("ksi", "load.py", "get"),
    "ksi_fanout": ("ksi", "fanout.py", "ksi"),
    "nats": ("nats", "peer_load.py", "nats"),
    "nats_inbox": ("nats", "peer_load.py", "nats_inbox"),
    "nats_fanout": ("nats", "fanout.py", "nats"),
    "jetstream": ("jetstream", "peer_load.py", "jetstream"),
    "valkey": ("valkey", "peer_load.py", "valkey"),
    "valkey_raw": ("valkey", "peer_load.py", "valkey_raw"),
}
SERVERS: Mapping[str, Callable[[], AbstractContextManager[Peer]]] = {
    "echo": peers.raw_echo,
    "floor": peers.durable_floor,
    "ksi": peers.ksi_daemon,
    "nats": peers.nats_core,
    "jetstream": peers.jetstream,
    "valkey": peers.valkey_server,
}


def run_case(case: Case, servers: Mapping[str, Peer], seconds: float) -> Sample:
    """Measure one case once."""
    server, script, word = SUBJECTS[case.subject]
    peer = servers[server]
    target = [peer.address, word] if script == "load.py" else [word, peer.address]
    return measure.run_load(
        script, [*target, *_shape(case), "--seconds", seconds], peer, one_cpu=case.shape == "1x1"
    )


def _shape(case: Case) -> Sequence[object]:
    if case.shape in FANOUTS:
        return ["--subscribers", FANOUTS[case.shape]]
    connections, in_flight = SHAPES[case.shape]
    return ["--connections", connections, "--in-flight", in_flight]


def measure_cases(cases: Collection[Case], results: Results, options: argparse.Namespace) -> None:
    """Run all cases in turn, and again, so that what drifts drifts for all of them."""
    with ExitStack() as stack:
        needed = {SUBJECTS[case.subject][0] for case in cases}
        servers = {name: stack.enter_context(SERVERS[name]()) for name in sorted(needed)}
        for repetition in range(options.repetitions):
            print(f"repetition {repetition + 1} of {options.repetitions}", file=sys.stderr)
            for case in cases:
                sample = run_case(case, servers, options.seconds)
                results.samples.setdefault(case, []).append(sample)


def measure_starts(results: Results, repetitions: int) -> None:
    """Start a daemon on an empty home, time its first answer, and weigh it when it is idle."""
    for _ in range(repetitions):
        with peers.ksi_daemon() as daemon:
            results.values.setdefault(FIRST_ANSWER, []).append(daemon.started_s)
            time.sleep(SETTLE_S)
            results.values.setdefault(IDLE, []).append(measure.rss_mb(daemon.processes))


def measure_catch_up(results: Results, repetitions: int, events: int) -> None:
    """Read a log of so many events from its beginning."""
    with peers.ksi_daemon() as daemon:
        publish = [daemon.address, "publish", "--in-flight", 64, "--requests", events]
        measure.run_load("load.py", publish, daemon, one_cpu=False)
        for _ in range(repetitions):
            found = measure.run_load(
                "catch_up.py", [daemon.address, "--events", events], daemon, one_cpu=False
            )
            results.values.setdefault(CATCH_UP, []).append(found.rate)


def measure_growth(results: Results) -> None:
    """Weigh the daemon after each half of a million mixed requests."""
    with peers.ksi_daemon() as daemon:
        weights = []
        for _ in range(2):
            mixed = [daemon.address, "mixed", "--in-flight", 64, "--requests", HALF]
            measure.run_load("load.py", mixed, daemon, one_cpu=False)
            time.sleep(SETTLE_S)
            weights.append(measure.rss_mb(daemon.processes))
        results.values[GROWTH] = [weights[1] - weights[0]]


def chosen_cases(word: str | None, *, peers_only: bool) -> list[Case]:
    """Return the cases that a word names, and those that they are held against."""
    named = {case for case in CASES if word is None or word in str(case)}
    for claim in CLAIMS:
        if word is not None and (word in claim.title or claim.case in named):
            named |= {claim.case, claim.against}
    return [
        case for case in CASES if case in named and not (peers_only and SUBJECTS[case.subject][0] == "ksi")
    ]


def chosen_bounds(options: argparse.Namespace) -> list[Bound]:
    """Return the fixed bounds to measure."""
    if options.peers:
        return []
    named = [bound for bound in BOUNDS if options.only is None or options.only in bound.title]
    return [bound for bound in named if options.long or bound is not GROWTH]


def run(options: argparse.Namespace) -> Results:
    """Measure what was asked for."""
    measure.allow_many_connections()
    results = Results()
    bounds = chosen_bounds(options)
    measure_cases(chosen_cases(options.only, peers_only=options.peers), results, options)
    if FIRST_ANSWER in bounds or IDLE in bounds:
        measure_starts(results, options.repetitions)
    if CATCH_UP in bounds:
        measure_catch_up(results, options.repetitions, 50_000 if options.quick else 200_000)
    if GROWTH in bounds:
        measure_growth(results)
    return results


def main() -> int:
    """Measure, print, and end with 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three repetitions of 0.4 s")
    parser.add_argument(
        "--only", metavar="WORD", help="only the cases, claims and bounds that contain this word"
    )
    parser.add_argument("--peers", action="store_true", help="only the peers, without KSI")
    parser.add_argument("--long", action="store_true", help="also the growth over 1,000,000 requests")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--seconds", type=float, help="of one run of one case")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    options.repetitions = options.repetitions or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.4 if options.quick else 1.0)
    results = run(options)
    if options.json:
        print(orjson.dumps(report.as_json(results), option=orjson.OPT_INDENT_2).decode())
    else:
        print(report.markdown(results) if options.markdown else report.text(results))
    missed = results.missed()
    print(f"{len(missed)} missed" + "".join(f"\n  {title}" for title in missed), file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
