"""The log, as clients have it."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ksi_common.events.event import (
    Append,
    Appended,
    Event,
    Events,
    FromCursor,
    FromTime,
    Get,
    Publish,
    Published,
    Query,
    Read,
    StreamEvents,
    Subscribe,
)
from ksi_daemon.plugin import (
    Catalog,
    Database,
    EventLog,
    Interest,
    InvalidArgument,
    LocalBus,
    LogQuery,
    NotFound,
    PermissionDenied,
    Sink,
    StoredEvent,
    Subscriptions,
    Transaction,
    handler,
    parse_cursor,
    parse_time,
)


@handler
async def publish(
    request: Publish, database: Database, log: EventLog, catalog: Catalog, bus: LocalBus
) -> Published:
    """Tell an event that no plugin declares."""
    _check_untold(request.event, catalog)
    data = orjson.dumps(request.data)
    if request.ephemeral:
        told = bus.pass_on(request.event, data, event_id=request.event_id, stream=request.stream, cause=False)
        return Published(event_id=told.event_id, seq=None, cursor=None)

    def tell(tx: Transaction) -> tuple[StoredEvent, bool]:
        told = tx.tell_raw(request.event, data, event_id=request.event_id, stream=request.stream, cause=False)
        return told, told not in tx.told

    told, known = await database.write(tell)
    seq = told.seq or 0
    return Published(event_id=told.event_id, seq=seq, cursor=log.cursor(seq), deduplicated=known)


@handler
async def append(request: Append, database: Database, log: EventLog, catalog: Catalog) -> Appended:
    """Append events to a stream, all or none."""
    for event in request.events:
        _check_untold(event.event, catalog)
    prepared = [(event, orjson.dumps(event.data)) for event in request.events]

    def put(tx: Transaction) -> tuple[Sequence[StoredEvent], int]:
        told = [
            tx.tell_raw(
                event.event,
                data,
                event_id=event.event_id,
                stream=request.stream,
                expected_version="any" if tx.told else request.expected_version,
                cause=False,
            )
            for event, data in prepared
        ]
        return told, len(tx.told)

    told, new = await database.write(put)
    last = told[-1]
    return Appended(
        stream=request.stream,
        version=last.version or 0,
        event_ids=[event.event_id for event in told],
        seq=last.seq or 0,
        cursor=log.cursor(last.seq or 0),
        deduplicated=new == 0,
    )


@handler
async def read(request: Read, log: EventLog) -> StreamEvents:
    """Read a stream, by pages."""
    backwards = request.direction == "backwards"
    stored, more = await log.stream(
        request.stream, from_version=request.from_version, backwards=backwards, limit=request.limit
    )
    events = [_event(event, log) for event in stored]
    last = (stored[-1].version or 0) if stored else 0
    return StreamEvents(
        stream=request.stream,
        events=events,
        count=len(events),
        next_version=(last - 1 or None if backwards else last + 1) if more else None,
    )


@handler
async def query(request: Query, log: EventLog, catalog: Catalog) -> Events:
    """Search the log, by pages."""
    stored, more = await log.query(
        LogQuery(
            patterns=catalog.followed(request.patterns),
            stream=request.stream,
            correlation_id=request.correlation_id,
            actor=request.agent_id,
            kind=request.kind,
            since_us=parse_time(request.since) if request.since else None,
            until_us=parse_time(request.until) if request.until else None,
            after=_position(request.cursor, log),
            reverse=request.reverse,
            limit=request.limit,
        )
    )
    events = [_event(event, log) for event in stored]
    return Events(events=events, count=len(events), next=events[-1].cursor if more else None)


@handler
async def get(request: Get, log: EventLog) -> Event:
    """Read one event."""
    stored = await log.get(request.event_id)
    if stored is None:
        raise NotFound(f"there is no event {request.event_id!r}", event_id=request.event_id)
    return _event(stored, log)


@handler
async def subscribe(request: Subscribe, sink: Sink, subscriptions: Subscriptions, catalog: Catalog) -> None:
    """Feed the client until it goes."""
    start: str | Mapping[str, Any]
    match request.start:
        case FromCursor(cursor=cursor):
            start = {"cursor": cursor}
        case FromTime(time=time):
            start = {"time": time}
        case str(word):
            start = word
    interest = Interest(catalog.followed(request.patterns), request.stream, start, request.overflow)
    await subscriptions.follow(interest, sink)


def _check_untold(event: str, catalog: Catalog) -> None:
    if catalog.declared(event) is not None:
        plugin = catalog.plugin_telling(event)
        raise PermissionDenied(f"{event} is told by plugin {plugin} only", reason="declared_event")
    if event in catalog.routes:
        raise InvalidArgument(
            f"{event} is asked, not told",
            reason="not_a_notification",
            hint=f'send {{"event":"{event}"}} itself',
        )


def _position(cursor: str | None, log: EventLog) -> int | None:
    if cursor is None:
        return None
    parsed = parse_cursor(cursor)
    if parsed.log_id != log.log_id:
        raise InvalidArgument("the cursor is of another log", reason="other_log")
    return parsed.seq


def _event(stored: StoredEvent, log: EventLog) -> Event:
    return Event(
        event=stored.event,
        data=orjson.loads(stored.data),
        event_id=stored.event_id,
        kind="request" if stored.kind == "request" else "notification",
        seq=stored.seq or 0,
        cursor=log.cursor(stored.seq or 0),
        stream=stored.stream,
        version=stored.version,
        correlation_id=stored.correlation_id,
        causation_id=stored.causation_id,
        actor=stored.actor,
        time=stored.time,
        raw=stored.raw,
    )
