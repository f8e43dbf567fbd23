"""What one load run found out, as it travels from the load's process to the measuring one."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Outcome:
    """Report the answered requests of a measured stretch, and how long each of them took."""

    rate: float  # answers per second of the measured stretch
    p50_us: float
    p99_us: float
    handled: int  # answers in all, warm-up included: what the server's CPU time is divided by
    busy: float  # what the load generator used of a core: near 1, it may have been the bottleneck

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Usage:
    """Remember the clocks of this process, to say later how busy it was since."""

    cpu_s: float = field(default_factory=time.process_time)
    wall_s: float = field(default_factory=time.perf_counter)

    def busy(self) -> float:
        """Return the share of one core that this process has used since."""
        return (time.process_time() - self.cpu_s) / (time.perf_counter() - self.wall_s)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the ordered values lie."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
