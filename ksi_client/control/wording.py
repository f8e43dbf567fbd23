"""What a command answers, and figures as people write them."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import field
from enum import IntEnum
from typing import Any

from ksi_common.records import record


class Exit(IntEnum):
    """Exit codes, the same in every command of KSI."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_PERMITTED = 4
    """In ``status``: not known, which is also where the socket is another user's."""
    NEWER_SCHEMA = 7
    INTERRUPTED = 130


@record
class Outcome:
    """The end of a command: ``text`` for people, ``data`` for ``--json``."""

    code: int
    text: str
    data: Mapping[str, object] = field(default_factory=dict)


Tell = Callable[[str], None]
"""Hears of progress, as text with its own line ends."""


def tell_nobody(text: str) -> None:
    """Keep progress to oneself."""


def tell_people(text: str) -> None:
    """Write to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write to stderr."""
    sys.stderr.write(text + "\n")


def models(health: Mapping[str, Any]) -> str:
    """Name the providers of models that can be used, and the others; say why where there is none to use.

    Models that have failed too often are named as well.
    """
    found = dict(health["checks"]["providers"]["detail"])
    found.pop("configured", None)
    left_alone = found.pop("left_alone", [])
    usable = [f"{name} (no key needed)" if name == "embedded" else name for name in found.pop("usable", [])]
    if not usable:
        return "; ".join(["none", *(f"{name}: {why}" for name, why in found.items())])
    others = f"; not set up: {', '.join(found)} (docs/providers.md)" if found else ""
    failing = f"; left alone for a while: {', '.join(left_alone)}" if left_alone else ""
    return ", ".join(usable) + failing + others


def duration(seconds: float) -> str:
    """Write a time span by its two largest units: ``0.6 s``, ``12 s``, ``2 h 14 m``, ``3 d 1 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(amount: float) -> str:
    """Write bytes in the unit that leaves at most three digits: ``52 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
