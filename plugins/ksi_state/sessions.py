"""``state:session:*``: the last output of each session, kept as a value of its own namespace."""

from ksi_common.events.state import Get, GetSession, SessionFound, SessionUpdated, Set, UpdateSession
from ksi_daemon.plugin import Bus, handler

NAMESPACE = "session"


@handler
async def get_session(request: GetSession, bus: Bus) -> SessionFound:
    """Read what was kept of a session."""
    found = await bus.call(Get(namespace=NAMESPACE, key=request.session_id))
    return SessionFound(session_id=request.session_id, output=found.value, found=found.found)


@handler
async def update_session(request: UpdateSession, bus: Bus) -> SessionUpdated:
    """Keep something of a session; state:set does it, and is what the log has of it."""
    await bus.call(Set(namespace=NAMESPACE, key=request.session_id, value=request.output))
    return SessionUpdated(session_id=request.session_id)
