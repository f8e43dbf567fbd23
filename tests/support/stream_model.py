"""What streams and keys are to do, in a page: the daemon is held against it."""

from dataclasses import dataclass, field
from typing import Any

Told = tuple[str, int]
"""An event: its id, and the number that it tells."""
Entry = tuple[str, str | int, list[Told]]
"""An append to one stream: its name, the version expected, the events."""


class Refused(Exception):
    """The daemon is to answer with this reason."""


@dataclass
class Model:
    """Streams by name, where each event id is, and what each key was answered."""

    streams: dict[str, list[Told]] = field(default_factory=dict)
    places: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """By event id: stream, number told, version."""
    keys: dict[str, tuple[list[Entry], dict[str, Any]]] = field(default_factory=dict)
    """What was asked under a key, and its reply."""

    def append(self, entries: list[Entry]) -> dict[str, Any]:
        """Append to several streams, all or none; give versions and ids as the daemon does."""
        streams = {name: list(told) for name, told in self.streams.items()}
        places = dict(self.places)
        appended = [_append(streams, places, *entry) for entry in entries]
        known = places == self.places
        self.streams, self.places = streams, places
        return {"appended": appended, "deduplicated": known}

    def append_once(self, key: str, entries: list[Entry]) -> dict[str, Any]:
        """Append under a key; what is refused leaves none."""
        if key in self.keys:
            asked, reply = self.keys[key]
            if asked != entries:
                raise Refused("other_body")
            return reply
        reply = self.append(entries)
        self.keys[key] = entries, reply
        return reply

    def read(self, stream: str, begin: int | None, *, backwards: bool, limit: int) -> list[tuple[int, Told]]:
        """Read a stream: versions and what they tell."""
        events = list(enumerate(self.streams.get(stream, []), 1))
        if backwards:
            return [one for one in reversed(events) if begin is None or one[0] <= begin][:limit]
        return [one for one in events if one[0] >= (begin or 1)][:limit]


def _append(
    streams: dict[str, list[Told]],
    places: dict[str, tuple[str, int, int]],
    stream: str,
    expected: str | int,
    events: list[Told],
) -> dict[str, Any]:
    told = streams.setdefault(stream, [])
    before = len(told)
    for ident, number in events:
        place = places.get(ident)
        if place is not None:
            if place[:2] != (stream, number):
                raise Refused("id_reused")
            continue
        if len(told) == before and not _fits(expected, before):
            raise Refused("wrong_version")
        told.append((ident, number))
        places[ident] = stream, number, len(told)
    return {
        "stream": stream,
        "version": places[events[-1][0]][2],
        "event_ids": [ident for ident, _ in events],
    }


def _fits(expected: str | int, actual: int) -> bool:
    return {"any": True, "none": actual == 0, "exists": actual > 0}.get(str(expected), actual == expected)
