"""Whatever happens while an event is handled knows which event that is."""

from ksi_common.envelope import EventEnvelope, reset_current, set_current
from ksi_daemon.outcomes import Endpoint, Send


async def correlation(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
    """Make ``envelope`` the current one: for logs, for what is told, and for what is asked further."""
    token = set_current(envelope)
    try:
        await call_next(envelope, send)
    finally:
        reset_current(token)
