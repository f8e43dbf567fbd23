"""What a test asked, what it was answered and what was told because of it: kept in a file, asked again later.

A recording is JSON lines, one for each exchange, made to be read and to be committed beside the test.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ksi_common.messages import matches
from ksi_common.records import record

Data = Mapping[str, Any]


@dataclass(slots=True)
class Exchange:
    """One request and all that came of it."""

    event: str
    data: Data
    reply: Data | None = None
    error: str | None = None
    """The code of the error, in place of a reply."""
    told: list[tuple[str, Data]] = field(default_factory=list)
    correlation_id: str = ""
    """Of this run only; it is not kept."""


@record
class Difference:
    """What is not as it was recorded."""

    number: int
    """Of the exchange, from 1."""
    event: str
    what: str
    """A path: reply.text, error, told.1.name."""
    recorded: object
    now: object

    def __str__(self) -> str:
        """Say it in a line."""
        was, now = (_shown(value) for value in (self.recorded, self.now))
        return f"{self.number}. {self.event}: {self.what} was {was}, is {now}"


@dataclass(slots=True)
class Recording:
    """Exchanges in the order asked."""

    exchanges: list[Exchange] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it, an exchange on a line."""
        lines = []
        for exchange in self.exchanges:
            kept = {name: value for name, value in asdict(exchange).items() if value not in (None, [])}
            kept.pop("correlation_id")
            lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
        path.write_text("".join(lines), encoding="utf-8")


def load_recording(path: Path) -> Recording:
    """Read what ``save`` wrote."""
    exchanges = []
    for line in path.read_text(encoding="utf-8").splitlines():
        read = json.loads(line)
        read["told"] = [(event, data) for event, data in read.get("told", ())]
        exchanges.append(Exchange(**read))
    return Recording(exchanges)


def exported(path: Path, pattern: str) -> Sequence[tuple[str, bytes]]:
    """Read the notifications that match from a file of ``ksi export``: names, and data as JSON."""
    events = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [
        (event["type"], json.dumps(event["data"]).encode())
        for event in events
        if event.get("ksikind") == "notification" and "data" in event and matches(pattern, event["type"])
    ]


def differences(
    number: int, recorded: Exchange, now: Exchange, *, ignoring: Iterable[str] = ()
) -> Iterator[Difference]:
    """Compare two exchanges; fields of the names in ``ignoring`` may be anything, at any depth."""
    ignored = frozenset(ignoring)
    was = {"reply": recorded.reply, "error": recorded.error, "told": _plain(recorded.told)}
    is_ = {"reply": now.reply, "error": now.error, "told": _plain(now.told)}
    for path, before, after in _unequal(was, is_, (), lambda name: name in ignored):
        yield Difference(number, recorded.event, ".".join(path), before, after)


ABSENT = object()
"""Stands where one of the two has nothing."""


def _unequal(
    before: object, after: object, path: tuple[str, ...], ignored: Callable[[str], bool]
) -> Iterator[tuple[tuple[str, ...], object, object]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys((*before, *after)):
            if not ignored(name):
                was, is_ = before.get(name, ABSENT), after.get(name, ABSENT)
                yield from _unequal(was, is_, (*path, name), ignored)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True), start=1):
            yield from _unequal(pair[0], pair[1], (*path, str(index)), ignored)
    elif before != after:
        yield path, before, after


def _plain(told: Sequence[tuple[str, Data]]) -> list[dict[str, Any]]:
    return [{"event": event, "data": data} for event, data in told]


def _shown(value: object) -> str:
    return "absent" if value is ABSENT else json.dumps(value, ensure_ascii=False)
