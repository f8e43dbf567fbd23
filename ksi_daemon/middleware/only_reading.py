"""What a sandbox answers: what is safe."""

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import FailedPrecondition
from ksi_daemon.outcomes import Endpoint, Send


async def only_reading(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
    """Refuse what may change anything, or that nobody knows."""
    spec = envelope.spec
    if spec is None or not spec.safe:
        raise FailedPrecondition(
            f"{envelope.event} is not done in a sandbox, which answers what is safe only",
            reason="sandbox",
            hint="ask the daemon that it was made of",
        )
    await call_next(envelope, send)
