"""Read the daemon's log: JSON lines, rendered for people, filtered, followed."""

import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final

from ksi_common.records import record

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
BLOCK: Final = 64 * 1024
FOLLOW_S: Final = 0.2

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Line = dict[str, Any]


@record
class Wanted:
    """Which lines to show. ``since``: RFC 3339, UTC, as the log writes it; ``lines``: the last so many."""

    lines: int | None = None
    since: str = ""
    level: str = "debug"

    def shows(self, line: Line) -> bool:
        """Tell whether its level is high enough; a line without one always is."""
        level = line.get("level")
        return level not in LEVELS or LEVELS.index(level) >= LEVELS.index(self.level)


def last_lines(path: Path, count: int) -> list[str]:
    """Give the last lines for people, without tracebacks; none where there is no log yet."""
    return [render(line).partition("\n")[0] for line in read(path, Wanted(lines=count))]


def read(path: Path, wanted: Wanted, *, end: int | None = None) -> list[Line]:
    """Give the wanted lines, the oldest first, from the log and those rotated before it.

    ``end``: the byte of ``path`` to stop at.
    """
    found: list[Line] = []
    for raw in _backwards(path, end):
        if wanted.lines is not None and len(found) >= wanted.lines:
            break
        line = parse(raw)
        if wanted.since and str(line.get("timestamp", wanted.since)) < wanted.since:
            break
        if wanted.shows(line):
            found.append(line)
    return found[::-1]


def follow(path: Path, wanted: Wanted, show: Callable[[Line], None]) -> None:
    """Show the wanted lines, then each new one, for ever; a rotated log is followed into the next file."""
    while not path.exists():
        time.sleep(FOLLOW_S)
    file = path.open("rb")
    end = _end_of_last_line(file)
    for line in read(path, wanted, end=end):
        show(line)
    file.seek(end)
    for raw in appended(path, file):
        line = parse(raw)
        if wanted.shows(line):
            show(line)


def appended(path: Path, file: IO[bytes]) -> Generator[bytes, None, None]:
    """Yield each line that is added, for ever; from a file that is rotated, the last ones too."""
    part = b""
    try:
        while True:
            rotated = _is_rotated(path, file)  # asked first: what was written until then is in this file
            block = file.read(BLOCK)
            *lines, part = (part + block).split(b"\n")
            yield from lines
            if block:
                continue
            if rotated:
                file.close()
                file = path.open("rb")
            else:
                time.sleep(FOLLOW_S)  # a file cannot be waited for
    finally:
        file.close()


def parse(raw: bytes) -> Line:
    """Read one line; what is no JSON object becomes the event's text."""
    try:
        line = json.loads(raw)
    except ValueError:
        line = None
    return line if isinstance(line, dict) else {"event": raw.decode(errors="replace")}


def parse_since(text: str) -> str:
    """Read ``10m`` (ago; s, m, h, d) or a time like ``2026-01-31T12:00``; give UTC as the log writes it."""
    try:
        moment = _moment(text).astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text!r} is a time that no calendar has") from error
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def render(line: Line) -> str:
    """Write a line for people: local time, level, event, and the other fields as ``name=value``."""
    rest = dict(line)
    when, level, event = (rest.pop(name, "") for name in ("timestamp", "level", "event"))
    traceback = rest.pop("exception", None)
    rest.pop("logger", None)
    fields = [f"{name}={_value(value)}" for name, value in rest.items()]
    head = " ".join([f"{_local(when):23}", f"{level:8}", str(event), *fields]).strip()
    return head if traceback is None else f"{head}\n{traceback}"


def _moment(text: str) -> datetime:
    if ago := re.fullmatch(r"(\d+)([smhd])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    return datetime.fromisoformat(text)  # a time without an offset is meant as the clock on the wall


def _value(value: object) -> str:
    if isinstance(value, str) and value and not re.search(r'[\s"=]', value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _local(timestamp: object) -> str:
    try:
        moment = datetime.fromisoformat(str(timestamp)).astimezone()
    except ValueError:
        return str(timestamp)
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


def _backwards(path: Path, end: int | None) -> Iterator[bytes]:
    """Give lines from the last to the first: of the log, then of ``ksi.jsonl.1``, ``.2`` and so on."""
    number = 0
    current = path
    while current.exists():
        with current.open("rb") as file:
            yield from _lines_backwards(file, file.seek(0, os.SEEK_END) if end is None else end)
        number, end = number + 1, None
        current = path.with_name(f"{path.name}.{number}")


def _lines_backwards(file: IO[bytes], end: int) -> Iterator[bytes]:
    beginning = b""  # of a line whose start lies further back
    while end > 0:
        start = max(end - BLOCK, 0)
        file.seek(start)
        first, *lines = (file.read(end - start) + beginning).split(b"\n")
        yield from (line for line in reversed(lines) if line)
        beginning, end = first, start
    if beginning:
        yield beginning


def _end_of_last_line(file: IO[bytes]) -> int:
    """Give where the last whole line ends: one that is being written now is followed, not read."""
    end = file.seek(0, os.SEEK_END)
    start = max(end - BLOCK, 0)
    file.seek(start)
    return start + file.read(end - start).rfind(b"\n") + 1


def _is_rotated(path: Path, file: IO[bytes]) -> bool:
    try:
        return path.stat().st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False  # between the two steps of a rotation
