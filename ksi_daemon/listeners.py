"""Subscribers in the process: each in order, each in its own time, none in anybody's way."""

from ksi_common.envelope import EventEnvelope, StoredEvent
from ksi_common.messages import spec_of
from ksi_daemon.assembly import Subscriber
from ksi_daemon.children import Tasks
from ksi_daemon.middleware import compose
from ksi_daemon.middleware.correlation import correlation
from ksi_daemon.middleware.errors import Errors
from ksi_daemon.outcomes import Outcome, Send
from ksi_daemon.queue_sink import following
from ksi_daemon.subscriptions import Interest, Subscriptions


class Listener:
    """Give one subscriber its events. What it raises is logged by ``errors``; then comes the next event."""

    def __init__(
        self, subscriber: Subscriber, subscriptions: Subscriptions, tasks: Tasks, errors: Errors
    ) -> None:
        self._subscriber = subscriber
        self._subscriptions = subscriptions
        self._tasks = tasks
        self._deliver = compose((correlation, errors), self._call)
        self._read = subscriber.event.__pydantic_validator__.validate_json

    async def run(self) -> None:
        """Listen from now on, until cancelled."""
        interest = Interest((spec_of(self._subscriber.event).name,))
        async with following(self._subscriptions, interest, self._tasks) as sink:
            while True:
                event, _ = await sink.take()
                await self._deliver(envelope_of(event), _nobody)

    async def _call(self, envelope: EventEnvelope, send: Send) -> None:
        del send
        notification = envelope.message = self._read(envelope.data["json"])
        await self._subscriber.call(notification, envelope)


def envelope_of(event: StoredEvent) -> EventEnvelope:
    """Make the envelope of an event that a subscriber hears; its data is JSON."""
    return EventEnvelope(
        event.event,
        {"json": event.data},
        event.event_id,
        event.correlation_id,
        event.causation_id,
        event.actor,
        event.hop,
    )


async def _nobody(outcome: Outcome) -> None:
    """Nobody waits for what a subscriber gives."""
