"""Run a load beside the servers it is put on, and account for the machine's time meanwhile."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers import Peer

HERE = Path(__file__).parent
CPUS = sorted(os.sched_getaffinity(0))
ONE_CPU = CPUS[-1:]


@dataclass(frozen=True, slots=True)
class Sample:
    """Report one run: what the load saw, what the servers spent, what others used of the machine."""

    rate: float
    p50_us: float
    p99_us: float
    server_us: float  # CPU time of the server's processes, per answer
    load_busy: float  # what the load generator used of a core
    rss_mb: float  # of the server's processes, afterwards
    others_share: float  # CPU that neither server nor load used, of the whole machine


@dataclass(frozen=True, slots=True)
class Spread:
    """Hold a figure's repetitions."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


def run_load(script: str, arguments: Sequence[object], peer: Peer, *, one_cpu: bool) -> Sample:
    """Run a load script on a peer; on the same single core where `one_cpu`, else on all."""
    cpus = ONE_CPU if one_cpu else CPUS
    _pin(peer.processes, cpus)
    command = [sys.executable, HERE / script, *arguments]
    machine, server, mine = _machine_s(), cpu_s(peer.processes), _own_s()
    wall = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command[1:]))}: {done.stderr.strip()[-2000:]}")
    wall = time.perf_counter() - wall
    machine, server, mine = _machine_s() - machine, cpu_s(peer.processes) - server, _own_s() - mine
    outcome = Outcome.from_json(done.stdout)
    return Sample(
        rate=outcome.rate,
        p50_us=outcome.p50_us,
        p99_us=outcome.p99_us,
        server_us=server / outcome.handled * 1e6,
        load_busy=outcome.busy,
        rss_mb=rss_mb(peer.processes),
        others_share=max(0.0, machine - server - mine) / (wall * (os.cpu_count() or 1)),
    )


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the CPU time that processes have used so far, in user and system mode."""
    times = [process.cpu_times() for process in processes]
    return sum(time.user + time.system for time in times)


def rss_mb(processes: Sequence[psutil.Process]) -> float:
    """Return the resident memory of processes."""
    return sum(process.memory_info().rss for process in processes) / 1e6


def allow_many_connections() -> None:
    """Raise the limit of open files for us and our children to what the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def machine() -> dict[str, object]:
    """Describe the machine in the words of a report."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpus": len(CPUS),
        "cpu": model[0].partition(": ")[2] if model else "unknown",
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": sys.version.split()[0],
        "kernel": os.uname().release,
    }


def plain(sample: Sample) -> dict[str, float]:
    """Return a sample as JSON wants it."""
    return asdict(sample)


def _pin(processes: Sequence[psutil.Process], cpus: Sequence[int]) -> None:
    """Let all threads of the processes run on these cores only."""
    for process in processes:
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cpus)


def _machine_s() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def _own_s() -> float:
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system
