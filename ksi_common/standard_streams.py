"""Stdin, stdout and stderr as a program can rely on them, whatever began it."""

import os
import sys
from io import TextIOWrapper


def make_usable() -> None:
    """Open on nothing what whoever began this has closed; show a character that cannot be written as ``?``.

    A descriptor that stays closed would be the next socket's or file's.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115  (for as long as this runs)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
