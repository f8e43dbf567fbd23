"""Times that a person waits: programs of a checkout, run as a person runs them, and rows of a table."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, and what it may be at most; seconds."""

    name: str
    values: Sequence[float]
    at_most_s: float

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        return self.median <= self.at_most_s


class Checkout:
    """A checkout whose programs are run as a person runs them."""

    def __init__(self, root: Path, python: str, home: Path) -> None:
        self._root, self._python = root, python
        self.home = home
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
        self._env["KSI_HOME"] = str(home)

    def run(self, *words: str) -> float:
        """Run a program of the checkout; give its wall time in seconds."""
        began = time.perf_counter()
        done = subprocess.run(
            [self._python, *words],
            cwd=self._root,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return time.perf_counter() - began


def show(rows: Sequence[Row], *, markdown: bool) -> None:
    line: Callable[[Sequence[str]], str] = (
        (lambda cells: f"| {' | '.join(cells)} |") if markdown else "  ".join
    )
    print(line([f"{'':<52}", "median s", "range       ", "at most", ""]))
    if markdown:
        print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        spread = f"{min(row.values):.2f}-{max(row.values):.2f}"
        word = "ok" if row.holds else "MISS"
        print(line([f"{row.name:<52}", f"{row.median:8.2f}", f"{spread:<12}", f"{row.at_most_s:7.2f}", word]))
