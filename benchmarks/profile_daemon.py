"""Say where the daemon's time goes under a load, function by function; cProfile makes small ones look dearer.

python benchmarks/profile_daemon.py publish --in-flight 64
python benchmarks/profile_daemon.py --imports
"""

from __future__ import annotations

import argparse
import pstats
import tempfile
from pathlib import Path

from benchmarks import measure, peers


def profile_load(kind: str, arguments: list[object], top: int) -> None:
    """Put a load on a profiled daemon and print the functions that took most time of their own.

    The writer's thread is not seen: cProfile follows the thread that it was started in.
    """
    with tempfile.TemporaryDirectory(prefix="ksip") as home:
        dump = Path(home) / "profile"
        with peers.ksi_daemon(["-m", "cProfile", "-o", str(dump)]) as daemon:
            sample = measure.run_load("load.py", [daemon.address, kind, *arguments], daemon, one_cpu=False)
        print(f"{kind}: {sample.rate:,.0f}/s under the profiler, {sample.server_us:.1f} us of CPU each")
        pstats.Stats(str(dump)).sort_stats("tottime").print_stats(top)


def profile_imports(top: int) -> None:
    """Start a daemon and print the modules that took longest to import."""
    with peers.ksi_daemon(["-X", "importtime"]) as daemon:
        output = (daemon.home / "output").read_text(errors="replace")
    found = [line.removeprefix("import time:").split("|") for line in output.splitlines() if "|" in line]
    times = sorted(((int(parts[0]), parts[2].strip()) for parts in found[1:]), reverse=True)
    print(f"first answer after {daemon.started_s * 1e3:.0f} ms, {len(times)} modules")
    for own_us, module in times[:top]:
        print(f"{own_us / 1e3:8.1f} ms  {module}")


def main() -> None:
    """Profile what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", nargs="?", default="publish")
    parser.add_argument("--imports", action="store_true", help="the time of imports instead")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--top", type=int, default=40)
    options = parser.parse_args()
    if options.imports:
        profile_imports(options.top)
        return
    shape: list[object] = ["--connections", options.connections, "--in-flight", options.in_flight]
    profile_load(options.kind, [*shape, "--seconds", options.seconds], options.top)


if __name__ == "__main__":
    main()
