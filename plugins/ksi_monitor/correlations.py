"""What one request led to: the events of a correlation id, each with its cause and its depth."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from ksi_common.events.correlation import Branch, Step
from ksi_daemon.plugin import Damage, EventLog, LogQuery, StoredEvent, format_time

MAX_EVENTS: Final = 10_000
MAX_NESTED: Final = 30
"""Depth down to which a tree is nested: a client can make a chain of any depth, and must read the reply."""
REPLY_BYTES: Final = 1536 * 1024
_PAGE: Final = 1000
_OVERHEAD: Final = 260
"""Bytes of a step besides its texts, about."""


@dataclass(slots=True, eq=False)
class Node:
    """An event without its data."""

    seq: int
    event_id: str
    name: str
    kind: str
    causation_id: str | None
    actor: str
    stream: str | None
    time_us: int
    parent: "Node | None" = None
    depth: int = -1
    """-1: not known yet."""

    @property
    def size(self) -> int:
        """Bytes that it takes in a reply, about."""
        texts = (self.event_id, self.name, self.causation_id, self.actor, self.stream)
        return _OVERHEAD + len(orjson.dumps(texts))


@dataclass(slots=True)
class Correlation:
    """Events in the order of the log, without their data, but for the last words."""

    nodes: list[Node] = field(default_factory=list)
    truncated: bool = False
    damaged: list[Damage] = field(default_factory=list)
    last_words: dict[str, bytes] = field(default_factory=dict)
    """Data of the last result and of the last error."""
    began_us: int = 0
    """The earliest time."""
    ended_us: int = 0
    """The latest time."""

    def root(self, correlation_id: str) -> Node:
        """Give the event that began it: the one that the id is of, else the first without a cause."""
        roots = [node for node in self.nodes if node.parent is None]
        return next((node for node in roots if node.event_id == correlation_id), roots[0])

    def step(self, node: Node) -> Step:
        """Describe an event."""
        return Step.model_construct(**self.facts(node))

    def facts(self, node: Node) -> dict[str, Any]:
        """Give the fields of an event's step."""
        return {
            "event_id": node.event_id,
            "event_name": node.name,
            "kind": node.kind,
            "causation_id": node.causation_id,
            "depth": node.depth,
            "created_at": format_time(node.time_us),
            "elapsed_ms": (node.time_us - self.began_us) / 1000,
            "actor": node.actor,
            "stream": node.stream,
            "seq": node.seq,
        }


_LAST_WORDS: Final = {"result": "result", "failed": "error", "cancelled": "error"}
"""What an event says, by the last part of its name."""


async def gather(log: EventLog, correlation_id: str, limit: int = MAX_EVENTS) -> Correlation:
    """Read the events of a correlation id, ``limit`` at most, and find what led to each."""
    found = Correlation()
    async for event in _events(log, correlation_id, limit + 1, found.damaged):
        if len(found.nodes) == limit:
            found.truncated = True
            break
        found.nodes.append(_node(event))
        word = _LAST_WORDS.get(event.event.rpartition(":")[2])
        if word is not None and event.kind == "notification":
            found.last_words[word] = event.data
    find_causes(found.nodes)
    times = [node.time_us for node in found.nodes]
    found.began_us, found.ended_us = min(times, default=0), max(times, default=0)
    return found


def find_causes(nodes: Sequence[Node]) -> None:
    """Set parents and depths. A circle, which ids chosen by clients can make, is cut at its first event."""
    by_id = {node.event_id: node for node in nodes}
    for node in nodes:
        node.parent = by_id.get(node.causation_id or "")
    for node in nodes:
        way = _way_up(node)
        for below in reversed(way):
            below.depth = 0 if below.parent is None else below.parent.depth + 1


def fitting(nodes: Iterable[Node]) -> tuple[list[Node], bool]:
    """Give as many as a reply has room for, and whether that was not all."""
    taken: list[Node] = []
    size = 0
    for node in nodes:
        size += node.size
        if size > REPLY_BYTES:
            return taken, True
        taken.append(node)
    return taken, False


def branches(correlation: Correlation) -> tuple[list[Branch], int, bool]:
    """Nest events below their causes; give how many there are, and whether some had no room."""
    nodes, cut = fitting(sorted(correlation.nodes, key=lambda node: (node.depth, node.seq)))
    top: list[Branch] = []
    children: dict[Node, list[Any]] = {}
    for node in nodes:
        facts = {**correlation.facts(node), "children": []}
        if node.parent is None:
            top.append(Branch.model_construct(**facts))
            children[node] = facts["children"]
        else:
            siblings = children[node.parent]
            siblings.append(facts)
            # Below the deepest level all stand side by side, in the list of the last that is nested.
            children[node] = facts["children"] if node.depth < MAX_NESTED else siblings
    return top, len(nodes), cut


async def _events(
    log: EventLog, correlation_id: str, limit: int, damaged: list[Damage]
) -> AsyncIterator[StoredEvent]:
    """Read page by page; a page may have nothing but what is damaged."""
    after, more = None, True
    while more and limit > 0:
        query = LogQuery(correlation_id=correlation_id, reverse=False, after=after, limit=min(limit, _PAGE))
        known = len(damaged)
        page, more = await log.query(query, damaged=damaged)
        for event in page:
            yield event
        limit -= len(page)
        seen = [event.seq or 0 for event in page] + [damage.seq for damage in damaged[known:]]
        more = more and bool(seen)
        after = max(seen, default=None)


def _node(event: StoredEvent) -> Node:
    return Node(
        event.seq or 0,
        event.event_id,
        event.event,
        event.kind,
        event.causation_id,
        event.actor,
        event.stream,
        event.time_us,
    )


def _way_up(node: Node) -> Sequence[Node]:
    """List an event and what led to it, up to where the depth is known; cut the circle that there may be."""
    start = node
    way: list[Node] = []
    seen: set[Node] = set()
    above: Node | None = node
    while above is not None and above.depth < 0:
        if above in seen:
            first = min(way[way.index(above) :], key=lambda each: each.seq)
            first.parent = None
            return _way_up(start)
        way.append(above)
        seen.add(above)
        above = above.parent
    return way
