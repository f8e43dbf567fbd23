"""Print what the spine measured: figures, ratios and bounds, as text or as Markdown."""

from __future__ import annotations

import datetime as dt
import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks import measure
from benchmarks.claims import CLAIMS, TITLES
from benchmarks.measure import Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.claims import Bound, Case, Claim
    from benchmarks.measure import Sample

    Table = list[Sequence[str]]

FIGURES = ("", "load", "per second", "p50 us", "p99 us", "server us each", "server MB", "load's CPU")
RATIOS = ("ratio, per repetition", "median", "range", "at least", "aim", "")
VALUES = ("the daemon", "median", "range", "bound", "aim", "")


@dataclass(slots=True)
class Results:
    """Collect the samples of each case, in the order of repetitions, and the bounded values."""

    samples: dict[Case, list[Sample]] = field(default_factory=dict)
    values: dict[Bound, list[float]] = field(default_factory=dict)

    def ratio(self, claim: Claim) -> Spread | None:
        """Return the claim's ratio per repetition, or None where it was not measured."""
        pairs = zip(self.samples.get(claim.case, ()), self.samples.get(claim.against, ()), strict=True)
        ratios = [ours.rate / theirs.rate for ours, theirs in pairs] if claim.case in self.samples else []
        return Spread(ratios) if ratios else None

    def judged(self) -> Iterator[tuple[Claim, Spread]]:
        """Yield the claims that could be measured, with their ratios."""
        for claim in CLAIMS:
            if claim.case in self.samples and claim.against in self.samples:
                spread = self.ratio(claim)
                assert spread is not None
                yield claim, spread

    def spread(self, case: Case, figure: Callable[[Sample], float]) -> Spread:
        return Spread([figure(sample) for sample in self.samples[case]])

    def missed(self) -> list[str]:
        """Return the titles of what does not hold."""
        ratios = [claim.title for claim, spread in self.judged() if not _holds(claim, spread)]
        values = [
            bound.title for bound, found in self.values.items() if not bound.holds(Spread(found).median)
        ]
        return ratios + values


def text(results: Results) -> str:
    """Render the tables for a terminal."""
    return "\n\n".join([*_tables(results, _aligned), _remarks(results)])


def markdown(results: Results) -> str:
    """Render the tables for docs/performance.md."""
    return "\n\n".join([_remarks(results), *_tables(results, _piped)])


def as_json(results: Results) -> Mapping[str, object]:
    """Return everything that was measured."""
    return {
        "machine": measure.machine(),
        "samples": {str(case): [measure.plain(s) for s in found] for case, found in results.samples.items()},
        "ratios": {claim.title: list(spread.values) for claim, spread in results.judged()},
        "values": {bound.title: found for bound, found in results.values.items()},
        "missed": results.missed(),
    }


def _tables(results: Results, render: Callable[[Table], str]) -> list[str]:
    tables = [
        [FIGURES, *(_figures(results, case) for case in results.samples)],
        [RATIOS, *(_ratios(claim, spread) for claim, spread in results.judged())],
        [VALUES, *(_values(bound, Spread(found)) for bound, found in results.values.items())],
    ]
    return [render(table) for table in tables if len(table) > 1]


def _figures(results: Results, case: Case) -> Sequence[str]:
    rate = results.spread(case, lambda sample: sample.rate)
    return (
        TITLES[case.subject],
        case.shape,
        f"{rate.median:,.0f} ({rate.low:,.0f}-{rate.high:,.0f})",
        f"{results.spread(case, lambda sample: sample.p50_us).median:,.0f}",
        f"{results.spread(case, lambda sample: sample.p99_us).median:,.0f}",
        f"{results.spread(case, lambda sample: sample.server_us).median:,.2f}",
        f"{results.spread(case, lambda sample: sample.rss_mb).median:,.0f}",
        f"{results.spread(case, lambda sample: sample.load_busy).median:.0%}",
    )


def _ratios(claim: Claim, spread: Spread) -> Sequence[str]:
    verdict = "ok" if _holds(claim, spread) else "MISS"
    return (
        claim.title,
        f"x{spread.median:.2f}",
        f"{spread.low:.2f}-{spread.high:.2f}",
        f"x{claim.at_least:g}" if claim.at_least else "",
        f"x{claim.aim:g}" if claim.aim else "",
        verdict if claim.at_least else "for information",
    )


def _values(bound: Bound, spread: Spread) -> Sequence[str]:
    places = 0 if bound.bound > 1000 else 2
    return (
        f"{bound.title}, {bound.unit}",
        f"{spread.median:,.{places}f}",
        f"{spread.low:,.{places}f}-{spread.high:,.{places}f}",
        f"at {'least' if bound.at_least else 'most'} {bound.bound:,g}",
        f"{bound.aim:,g}",
        "ok" if bound.holds(spread.median) else "MISS",
    )


def _holds(claim: Claim, spread: Spread) -> bool:
    return claim.at_least is None or spread.median >= claim.at_least


def _remarks(results: Results) -> str:
    found = measure.machine()
    samples = [sample for case in results.samples.values() for sample in case]
    others = Spread([sample.others_share for sample in samples] or [0.0])
    repetitions = max((len(case) for case in results.samples.values()), default=0)
    return (
        f"{dt.datetime.now(dt.UTC).date()}, `python {shlex.join(sys.argv)}`: "
        f"{found['cpus']} cores ({found['cpu']}), {found['memory_gb']} GB, Linux {found['kernel']}, "
        f"Python {found['python']}. {repetitions} repetitions, interleaved; others used {others.median:.0%} "
        f"of the machine (in one run {others.high:.0%}). Load is connections x in flight; 1x1 on one core, "
        "everything else on all. Fan-out counts deliveries, and its times are those of a burst of 64."
    )


def _aligned(table: Table) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(_padded(row, widths)).rstrip() for row in table)


def _padded(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if column == 0 else cell.rjust(width)


def _piped(table: Table) -> str:
    head, *rows = table
    ruled = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)
