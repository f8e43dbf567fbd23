"""The events of a session: conversation:get says which completions it has, each of which is a stream."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ksi_common.events.conversation import Get, Said
from ksi_common.events.monitor import GetSessionEvents, SessionEvents
from ksi_daemon.plugin import Bus, Damage, EventLog, StoredEvent

REPLY_BYTES: Final = 1536 * 1024
"""Of the events of one reply, about."""
MAX_OF_ONE: Final = 1000
"""Events of one completion that are read."""
_OVERHEAD: Final = 600


@dataclass(slots=True)
class _Window:
    """The messages that are looked at, from the end that is read from."""

    said: list[Said]
    total: int


@dataclass(slots=True)
class _Found:
    """Events by their position; a request may have asked for two completions."""

    events: dict[int, StoredEvent] = field(default_factory=dict)
    size: int = 0
    damaged: list[Damage] = field(default_factory=list)

    def add(self, event: StoredEvent) -> None:
        if event.seq is not None and event.seq not in self.events:
            self.events[event.seq] = event
            self.size += len(event.data) + _OVERHEAD


async def page_of(request: GetSessionEvents, bus: Bus, log: EventLog) -> SessionEvents:
    """Read one page; raise NotFound where there is no such session."""
    window = await _window(request, bus)
    sources: list[str] = []
    found, passed = _Found(), request.offset
    for request_id, messages in _by_request(window.said):
        if sources and found.size > REPLY_BYTES:
            break
        sources.append(f"completion/{request_id}")
        passed += messages
        await _read(sources[-1], log, found)
    events = [log.as_reply(found.events[seq]) for seq in sorted(found.events, reverse=request.reverse)]
    return SessionEvents(
        session_id=request.session_id,
        events=events,
        count=len(events),
        sources=sources,
        next_offset=passed if passed < window.total else None,
        damaged=len(found.damaged),
    )


async def _window(request: GetSessionEvents, bus: Bus) -> _Window:
    start, end = request.offset, request.offset + request.limit
    if request.reverse:
        total = (await bus.call(Get(session_id=request.session_id, limit=1))).total
        start, end = max(0, total - end), max(0, total - start)
    said: list[Said] = []
    while True:
        # A page of a conversation ends where it has a mebibyte; so it takes some.
        limit, offset = max(1, end - start - len(said)), start + len(said)
        page = await bus.call(Get(session_id=request.session_id, limit=limit, offset=offset))
        said.extend(page.messages[: end - offset])
        if not page.messages or len(said) >= end - start:
            return _Window(said[::-1] if request.reverse else said, page.total)


def _by_request(said: Sequence[Said]) -> Sequence[tuple[str, int]]:
    """Give each completion, and how many of the messages are of it."""
    counts: dict[str, int] = {}
    for message in said:
        counts[message.request_id] = counts.get(message.request_id, 0) + 1
    return list(counts.items())


async def _read(stream: str, log: EventLog, found: _Found) -> None:
    """Read the stream of a completion, and the request that it began with."""
    page = await log.stream(
        stream, from_version=None, backwards=False, limit=MAX_OF_ONE, damaged=found.damaged
    )
    told = page.events
    for event in told:
        found.add(event)
    cause = told[0].causation_id if told else None
    asked = await log.get(cause) if cause is not None else None
    if asked is not None:
        found.add(asked)
