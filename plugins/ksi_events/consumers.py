"""Named consumers, as clients have them."""

from ksi_common.clock import format_time
from ksi_common.events.consumer import (
    Ack,
    Acknowledged,
    Consumer,
    ConsumerDelete,
    ConsumerDeleted,
    ConsumerList,
    Member,
    Nak,
)
from ksi_common.events.consumer import Consumers as ListConsumers
from ksi_daemon.plugin import Consumers, ConsumerState, EventLog, Refusal, consumer_key, handler


@handler
async def ack(request: Ack, consumers: Consumers) -> Acknowledged:
    """Take note that events are done."""
    done = await consumers.report(consumer_key(request.consumer, request.group), request.cursors, None)
    return Acknowledged(done=done, ignored=len(request.cursors) - done)


@handler
async def nak(request: Nak, consumers: Consumers) -> Acknowledged:
    """Take events back."""
    refusal = Refusal(
        request.delay_s, message=request.reason or "given back by its consumer", give_up=request.give_up
    )
    key = consumer_key(request.consumer, request.group)
    taken = await consumers.report(key, request.cursors, refusal)
    return Acknowledged(done=taken, ignored=len(request.cursors) - taken)


@handler
async def list_consumers(request: ListConsumers, consumers: Consumers, log: EventLog) -> ConsumerList:
    """Tell how far everyone is."""
    found = [_consumer(state, log) for state in await consumers.listed(request.kind, request.name)]
    return ConsumerList(consumers=found, count=len(found))


@handler
async def delete_consumer(request: ConsumerDelete, consumers: Consumers) -> ConsumerDeleted:
    """Forget a cursor."""
    await consumers.delete(request.kind, request.name)
    return ConsumerDeleted(kind=request.kind, name=request.name)


def _consumer(state: ConsumerState, log: EventLog) -> Consumer:
    row = state.row
    members = [
        Member(name=member.name, in_flight=len(member.has), max_inflight=member.max_inflight)
        for member in state.members
    ]
    return Consumer.model_validate(
        {
            "name": row.name,
            "kind": row.kind,
            "patterns": list(row.patterns),
            "stream": row.stream,
            "cursor": log.cursor(row.position),
            "lag": state.lag,
            "age_s": state.age_s,
            "in_flight": sum(member.in_flight for member in members),
            "waiting_again": state.waiting_again,
            "dead_letters": state.dead_letters,
            "max_attempts": row.max_attempts,
            "members": members,
            "created": format_time(row.created_us),
            "changed": format_time(row.changed_us),
        }
    )
