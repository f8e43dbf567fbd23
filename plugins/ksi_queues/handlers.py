"""What is asked of queues."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ksi_common.events.async_state import (
    Delete,
    Deleted,
    ExpireQueue,
    Expiring,
    GetKeys,
    GetQueue,
    Keys,
    Length,
    Pop,
    Popped,
    Push,
    Pushed,
    Queue,
    QueueLength,
    Sweep,
    Swept,
)
from ksi_daemon.plugin import (
    Clock,
    Database,
    EventEnvelope,
    Service,
    Timers,
    event_context,
    format_time,
    handler,
    hookimpl,
    new_id,
    scripts,
)
from ksi_queues.store import Queues


@hookimpl
def ksi_migrations() -> Mapping[int, str]:
    """Give the table of queues."""
    return scripts("ksi_queues")


@hookimpl
def ksi_services() -> Sequence[Service[Any]]:
    """Offer the queues."""
    return [Service(Queues, _open)]


@asynccontextmanager
async def _open(database: Database, timers: Timers, clock: Clock) -> AsyncIterator[Queues]:
    yield Queues(database, timers, clock)


@handler
async def push(request: Push, queues: Queues) -> Pushed:
    """Put a value at the end, and tell it."""
    position = await queues.push(request.namespace, request.key, request.data, ttl_s=request.ttl_seconds)
    return Pushed(position=position, namespace=request.namespace, key=request.key)


@handler
async def pop(request: Pop, queues: Queues) -> Popped:
    """Take the first value, and tell it."""
    data, found = await queues.pop(request.namespace, request.key)
    return Popped(
        status="popped" if found else "empty",
        data=data,
        found=found,
        namespace=request.namespace,
        key=request.key,
    )


@handler
async def get_queue(request: GetQueue, queues: Queues) -> Queue:
    """Read values, by pages."""
    data, following = await queues.read(
        request.namespace, request.key, after=request.after or 0, limit=request.limit
    )
    return Queue(
        data=list(data), count=len(data), namespace=request.namespace, key=request.key, next=following
    )


@handler
async def queue_length(request: QueueLength, queues: Queues) -> Length:
    """Count values."""
    length = await queues.length(request.namespace, request.key)
    return Length(length=length, namespace=request.namespace, key=request.key)


@handler
async def get_keys(request: GetKeys, queues: Queues) -> Keys:
    """List queues, by pages."""
    keys = await queues.keys(request.namespace, after=request.after or "", limit=request.limit)
    more = len(keys) == request.limit
    return Keys(
        keys=list(keys), count=len(keys), namespace=request.namespace, next=keys[-1] if more else None
    )


@handler
async def delete(request: Delete, queues: Queues) -> Deleted:
    """Remove a queue, and tell it."""
    deleted = await queues.delete(request.namespace, request.key)
    return Deleted(deleted=deleted, namespace=request.namespace, key=request.key)


@handler
async def expire_queue(request: ExpireQueue, queues: Queues) -> Expiring:
    """Let what is in a queue expire."""
    items, expires = await queues.expire(request.namespace, request.key, ttl_s=request.ttl_seconds)
    return Expiring(items=items, expires=format_time(expires), namespace=request.namespace, key=request.key)


@handler
async def sweep(_: Sweep, queues: Queues) -> Swept:
    """Remove what has expired."""
    ident = new_id()
    # Each sweep stands alone: the timer would carry the correlation of a push from sweep to sweep, for ever.
    with event_context(EventEnvelope("async_state:sweep", {}, ident, ident, actor="system")):
        removed, more = await queues.sweep()
    return Swept(removed=removed, more=more)
