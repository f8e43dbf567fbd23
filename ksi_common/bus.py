"""The one interface to events: a plugin has it in process, a client over the socket."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import orjson
from pydantic import JsonValue

from ksi_common.envelope import StoredEvent
from ksi_common.messages import Message, Notification, Request, Stream
from ksi_common.records import record

R = TypeVar("R", bound=Message)


@record
class Delivered:
    """An event as a subscriber gets it."""

    event: str
    data: Mapping[str, JsonValue]
    event_id: str
    cursor: str
    """Where to resume after it."""
    correlation_id: str
    causation_id: str | None
    actor: str
    time: str
    """RFC 3339, UTC."""
    stream: str | None = None
    version: int | None = None
    raw: bool = False
    """Its data are of a version of the event that this daemon does not know, and are as they were told."""

    @classmethod
    def of(cls, event: StoredEvent, cursor: str) -> Self:
        """Make what a subscriber gets of an event of the log."""
        return cls(
            event.event,
            orjson.loads(event.data),  # what was told is believed: it may be what no client could send
            event.event_id,
            cursor,
            event.correlation_id,
            event.causation_id,
            event.actor,
            event.time,
            event.stream,
            event.version,
            event.raw,
        )


class Bus(Protocol):
    """Ask, follow, tell and listen."""

    async def call(self, request: Request[R], *, timeout_s: float | None = None) -> R:
        """Ask for one reply; raise the KSIError that the handler, or the way to it, gives."""
        ...

    def stream(self, request: Stream[R], *, timeout_s: float | None = None) -> AsyncIterator[R]:
        """Ask for many items; closing the iterator stops the handler."""
        ...

    async def notify(self, notification: Notification) -> None:
        """Tell what happened; returns once it is stored (unless ephemeral) and handed to subscribers."""
        ...

    def subscribe(
        self, patterns: str | Sequence[str], *, start: "str | Mapping[str, Any]" = "now"
    ) -> AsyncIterator[Delivered]:
        """Follow events that match, in order; ``start``: "now", "beginning", {"cursor": …} or {"time": …}."""
        ...
