"""Members of named consumers that acknowledge what they are given, and who looks at what that is."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from tests.support.pipeline import call_line, connected


@dataclass
class Witness:
    """What all members of one consumer were given; an AssertionError says what was wrong with it.

    ``life``: tells apart the lives of a daemon; a connection belongs to the one in which it was made.
    ``keyed``: a key's next event waits for the one before.
    """

    life: Callable[[], int]
    keyed: bool
    given: list[str] = field(default_factory=list)
    """Ids, in order, again where they came again."""
    acknowledged: set[str] = field(default_factory=set)
    """Of which the daemon said that this is on disk."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _lives: dict[str, int] = field(default_factory=dict)
    _busy: dict[str, str] = field(default_factory=dict)
    _busy_life: int = 0

    def give(self, item: dict[str, Any], life: int) -> None:
        """See an event given to a member, over a connection of that life."""
        ident = item["event_id"]
        assert ident not in self.acknowledged, f"{ident} came again after it was acknowledged"
        assert self._lives.get(ident) != life, f"{ident} came twice, and nothing was killed"
        self._lives[ident] = life
        self.given.append(ident)
        self.changed.set()
        if self.keyed:
            if life != self._busy_life:
                self._busy, self._busy_life = {}, life
            key = item["stream"] or item["correlation_id"]
            assert key not in self._busy, (
                f"{ident} came while {self._busy[key]} of the same key was in flight"
            )
            self._busy[key] = ident

    def send(self, item: dict[str, Any]) -> None:
        """See that an acknowledgement is on its way."""
        self._busy.pop(item["stream"] or item["correlation_id"], None)

    def check(self, told: Sequence[tuple[str, str]]) -> None:
        """Hold it against what there was: (id, key), in order."""
        firsts = list(dict.fromkeys(self.given))
        missing = {ident for ident, _ in told}.difference(firsts)
        assert not missing, f"{len(missing)} of {len(told)} never came: {sorted(missing)[:3]}"
        assert len(firsts) == len(told), "there is more than there was"
        if not self.keyed:
            assert firsts == [ident for ident, _ in told], "not in the order of the log"
            return
        came: dict[str, list[str]] = defaultdict(list)
        keys = dict(told)
        for ident in firsts:
            came[keys[ident]].append(ident)
        wanted: dict[str, list[str]] = defaultdict(list)
        for ident, key in told:
            wanted[key].append(ident)
        assert came == wanted, "not in order within a key"


class Consuming:
    """One member: it acknowledges what it was given, as it comes, over any number of connections."""

    def __init__(self, path: Path, who: dict[str, Any], witness: Witness) -> None:
        self._path = path
        self._who = who
        self._witness = witness
        self._numbers = count()
        self._unanswered: dict[str, list[str]] = {}
        self._life = 0

    async def consume(self, again: Callable[[], Awaitable[object]]) -> None:
        """Go on until cancelled; await ``again`` before each further connection."""
        while True:
            try:
                await self._consume_once()
            except ConnectionError:
                await again()

    async def _consume_once(self) -> None:
        self._unanswered.clear()
        wish = {"patterns": ["demo:*"], "start": "beginning", "max_inflight": 256, **self._who}
        self._life = self._witness.life()
        async with connected(self._path) as (reader, writer):
            writer.write(call_line("event:subscribe", wish, "s"))
            rest = b""
            while chunk := await reader.read(1 << 18):
                *lines, rest = (rest + chunk).split(b"\n")
                items = [frame for line in lines if (frame := self._take(orjson.loads(line)))]
                if items:
                    self._acknowledge(items, writer)
        raise ConnectionResetError("the daemon hung up")

    def _take(self, frame: dict[str, Any]) -> dict[str, Any] | None:
        if frame["type"] == "item":
            self._witness.give(frame["data"], self._life)
            return frame
        if frame["type"] == "reply":
            self._witness.acknowledged.update(self._unanswered.pop(frame["id"]))
            self._witness.changed.set()
        elif frame["type"] == "error":
            raise ConnectionResetError(frame["error"]["message"])
        return None

    def _acknowledge(self, items: Sequence[dict[str, Any]], writer: asyncio.StreamWriter) -> None:
        ident = f"a{next(self._numbers)}"
        self._unanswered[ident] = [item["data"]["event_id"] for item in items]
        whose: dict[str, Any] = {key: self._who[key] for key in ("consumer", "group") if key in self._who}
        for item in items:
            self._witness.send(item["data"])
        writer.write(call_line("event:ack", {**whose, "cursors": [item["cursor"] for item in items]}, ident))
