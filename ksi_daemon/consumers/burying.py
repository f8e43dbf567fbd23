"""From an event that failed too often to its dead letter."""

from ksi_common.envelope import EventEnvelope, StoredEvent
from ksi_daemon.consumers.ledger import Failures
from ksi_daemon.dead_letters import DeadLetter


def letter_of(
    event: StoredEvent, origin: str, name: str, failures: Failures, *, reason: str, message: str
) -> DeadLetter:
    """Make the dead letter of an event of the log."""
    return DeadLetter(
        kind="event",
        origin=origin,
        name=name,
        event=event.event,
        event_id=event.event_id,
        seq=event.seq,
        stream=event.stream,
        version=event.version,
        data=event.data.decode(),
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
        actor=event.actor,
        time_us=event.time_us,
        attempts=max(failures.attempts, 1),
        reason=reason,
        message=message,
        first_failed_us=failures.first_us,
    )


def cause_of(event: StoredEvent) -> EventEnvelope:
    """Make an event of the log the cause of what is told next."""
    return EventEnvelope(event.event, {}, event.event_id, event.correlation_id, actor=event.actor)
