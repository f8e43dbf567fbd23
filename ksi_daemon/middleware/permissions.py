"""Who may ask for what."""

from ksi_common.envelope import OWNER, EventEnvelope
from ksi_common.errors import NotFound, PermissionDenied
from ksi_daemon.outcomes import Endpoint, Send


async def permissions(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
    """Let through what ``check`` does."""
    check(envelope)
    await call_next(envelope, send)


def check(envelope: EventEnvelope) -> None:
    """Refuse what the actor may not do; the owner may do everything that is exposed."""
    spec = envelope.spec
    if spec is not None and not spec.expose and envelope.caller is not None:
        raise NotFound(f'no plugin handles "{envelope.event}"', reason="unknown_event", nearest=[])
    if envelope.actor != OWNER and spec is not None and spec.permission is not None:
        raise PermissionDenied(f"{envelope.actor} may not send {envelope.event}", permission=spec.permission)
