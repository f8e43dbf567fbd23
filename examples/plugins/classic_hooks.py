"""The same without classes: plain pluggy hooks, for events that no class declares."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ksi_daemon.plugin import EventEnvelope, NotFound, hookimpl

log = logging.getLogger(__name__)
handled: Counter[str] = Counter()


@hookimpl
async def ksi_startup() -> None:
    """Prepare. There are `bus` and `services` to take; take only the parameters that you need."""
    handled.clear()


@hookimpl
async def ksi_handle_event(event: str, data: Mapping[str, Any], context: EventEnvelope) -> Any:
    """Answer with an object; None passes the event on to the next plugin."""
    if event == "classic:ping":
        return {"pong": data, "correlation_id": context.correlation_id}
    if event == "classic:count":
        name = str(data.get("event", "classic:ping"))
        if name not in handled:
            raise NotFound(f"{name} was not handled yet", hint="send it first")
        return {"event": name, "count": handled[name]}
    return None


@hookimpl
def ksi_event_handled(envelope: EventEnvelope, code: str) -> None:
    """See every event after its answer. This is on everybody's way: do little, and never wait."""
    if code == "OK":
        handled[envelope.event] += 1


@hookimpl
async def ksi_shutdown() -> None:
    """Clean up, after the last event."""
    log.info("%d events were handled", handled.total())
