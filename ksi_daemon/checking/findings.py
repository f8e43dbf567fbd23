"""What a check finds, and the places of code that it speaks of."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from ksi_common.records import record

Level = Literal["ok", "warning", "problem"]


@record
class Finding:
    """A sentence, and where: ``place`` is a file and a line of the author's, ``hint`` what to do."""

    level: Level
    text: str
    place: str | None = None
    hint: str | None = None


def place_of(thing: Callable[..., Any] | type) -> str | None:
    """Give file:line of a function or a class; None where it has no source."""
    code = getattr(inspect.unwrap(thing), "__code__", None)
    if code is not None:
        return f"{_short(code.co_filename)}:{_first_line(code)}"
    try:
        file, (_, line) = inspect.getsourcefile(thing), inspect.getsourcelines(thing)
    except (OSError, TypeError):
        return None
    return f"{_short(file or '')}:{line}"


def at(path: Path, line: int) -> str:
    """Write a place."""
    return f"{_short(str(path))}:{line}"


def unique(findings: Iterable[Finding]) -> list[Finding]:
    """Leave out what is said twice."""
    return list(dict.fromkeys(findings))


def _first_line(code: Any) -> int:
    """Give the line of ``def``, not that of the decorators above it."""
    lines = [line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno]
    return _def_line(code) or (min(lines) - 1 if lines else code.co_firstlineno)


def _def_line(code: Any) -> int | None:
    try:
        source, start = inspect.getsourcelines(code)
    except OSError:
        return None
    for offset, text in enumerate(source):
        if text.lstrip().startswith(("def ", "async def ")):
            return int(start) + offset
    return None


def _short(file: str) -> str:
    path = Path(file)
    return "/".join(path.parts[-2:]) if path.parent.name.startswith("ksi_") else path.name
