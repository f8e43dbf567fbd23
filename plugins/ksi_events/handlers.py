"""The log, as clients have it."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import orjson

from ksi_common.events.event import (
    Append,
    Appended,
    AppendedMany,
    AppendedTo,
    AppendMany,
    Event,
    Events,
    ExpectedVersion,
    FromCursor,
    FromTime,
    Get,
    NewEvent,
    Publish,
    Published,
    Query,
    Read,
    StreamEvents,
    Subscribe,
)
from ksi_daemon.plugin import (
    Catalog,
    Consumers,
    Damage,
    Database,
    EventLog,
    Hub,
    Interest,
    InvalidArgument,
    LocalBus,
    LogQuery,
    NotFound,
    PermissionDenied,
    Rendered,
    Sink,
    StoredEvent,
    Subscriptions,
    Telling,
    Transaction,
    Unit,
    Wish,
    current_envelope,
    handler,
    parse_time,
)
from ksi_events.verification import damages

MAX_EVENTS: Final = 1000
"""Of one request."""


@handler
def publish(
    request: Publish, log: EventLog, catalog: Catalog, bus: LocalBus
) -> Rendered[Published] | Telling[Rendered[Published]] | Unit[Rendered[Published]]:
    """Tell an event that no plugin declares."""
    _check_untold(request.event, catalog)
    data = orjson.dumps(request.data)
    if request.ephemeral:
        pass_on = partial(
            bus.pass_on,
            request.event,
            data,
            event_id=request.event_id,
            stream=request.stream,
            cause=False,
        )
        asked = current_envelope()  # as a parameter it would cost each event that is stored
        if asked is None or asked.idempotency_key is None:
            return _published(pass_on(), None)
        # Told with its key, or not at all: what was refused and told would be told again by a retry.
        return lambda tx: _published(pass_on(tx=tx), None)

    return Telling(
        request.event,
        data,
        lambda told, known: _published(told, log.cursor(told.seq or 0), known=known),
        request.event_id,
        request.stream,
    )


def _published(told: StoredEvent, cursor: str | None, *, known: bool = False) -> Rendered[Published]:
    reply = {"event_id": told.event_id, "seq": told.seq, "cursor": cursor, "deduplicated": known}
    return Rendered(Published, orjson.dumps(reply))


@handler
def append(request: Append, tx: Transaction, log: EventLog, catalog: Catalog) -> Appended:
    """Append events to a stream, all or none."""
    for event in request.events:
        _check_untold(event.event, catalog)
    told = [
        tx.tell_raw(
            event.event,
            orjson.dumps(event.data),
            event_id=event.event_id,
            stream=request.stream,
            expected_version="any" if tx.told else request.expected_version,
            cause=False,
        )
        for event in request.events
    ]
    last = told[-1]
    return Appended(
        stream=request.stream,
        version=last.version or 0,
        event_ids=[event.event_id for event in told],
        seq=last.seq or 0,
        cursor=log.cursor(last.seq or 0),
        deduplicated=not tx.told,
    )


@handler
async def read(request: Read, log: EventLog) -> StreamEvents:
    """Read a stream, by pages."""
    damaged: list[Damage] = []
    page = await log.stream(
        request.stream,
        from_version=request.from_version,
        backwards=request.direction == "backwards",
        limit=request.limit,
        damaged=damaged,
    )
    whole = any(event.version == 1 for event in page.events)
    return StreamEvents(
        stream=request.stream,
        events=[log.as_reply(event) for event in page.events],
        count=len(page.events),
        next_version=page.next_version,
        compacted=0 if whole else await log.compacted(request.stream),
        damaged=damages(damaged),
    )


@handler
async def query(request: Query, log: EventLog, catalog: Catalog, hub: Hub) -> Events:
    """Search the log, by pages."""
    damaged: list[Damage] = []
    stored, more = await log.query(
        LogQuery(
            patterns=catalog.followed(request.patterns),
            stream=request.stream,
            correlation_id=request.correlation_id,
            actor=request.agent_id,
            kind=request.kind,
            since_us=parse_time(request.since) if request.since else None,
            until_us=parse_time(request.until) if request.until else None,
            after=_position(request.cursor, log, hub),
            reverse=request.reverse,
            limit=request.limit,
        ),
        damaged=damaged,
    )
    events = [log.as_reply(event) for event in stored]
    seen = [event.seq for event in events] + [damage.seq for damage in damaged]
    last = (min(seen) if request.reverse else max(seen)) if more else 0
    return Events(
        events=events,
        count=len(events),
        next=log.cursor(last) if more else None,
        damaged=damages(damaged),
    )


@handler
async def get(request: Get, log: EventLog) -> Event:
    """Read one event."""
    stored = await log.get(request.event_id)
    if stored is None:
        raise NotFound(f"there is no event {request.event_id!r}", event_id=request.event_id)
    return log.as_reply(stored)


@handler
async def subscribe(
    request: Subscribe, sink: Sink, subscriptions: Subscriptions, consumers: Consumers, catalog: Catalog
) -> None:
    """Feed the client until it goes."""
    start: str | dict[str, str]
    match request.start:
        case FromCursor(cursor=cursor):
            start = {"cursor": cursor}
        case FromTime(time=time):
            start = {"time": time}
        case str(word):
            start = word
    patterns = catalog.followed(request.patterns)
    if request.consumer is not None or request.group is not None:
        await consumers.follow(_wish(request, patterns, start), sink)
    else:
        _refuse_what_names_have(request)
        await subscriptions.follow(Interest(patterns, request.stream, start, request.overflow), sink)


def _refuse_what_names_have(request: Subscribe) -> None:
    asked = {
        "max_inflight": request.max_inflight is not None,
        "max_attempts": request.max_attempts is not None,
        "ack_wait_s": request.ack_wait_s is not None,
        "ack": request.ack != "explicit",
    }
    for field, is_asked in asked.items():
        if is_asked:
            raise InvalidArgument(
                f"{field} is of a named consumer, and none is named",
                reason="no_consumer",
                field=field,
                hint="give consumer, or group",
            )


def _wish(request: Subscribe, patterns: Sequence[str], start: str | dict[str, str]) -> Wish:
    if request.overflow != "log":
        raise InvalidArgument("a named consumer misses nothing: overflow is log", reason="overflow")
    return Wish(
        patterns=patterns,
        stream=request.stream,
        start=start,
        consumer=request.consumer,
        group=request.group,
        max_inflight=request.max_inflight,
        max_attempts=request.max_attempts,
        ack_wait_s=request.ack_wait_s,
        automatic=request.ack == "auto",
    )


@handler
async def append_many(
    request: AppendMany, database: Database, log: EventLog, catalog: Catalog
) -> AppendedMany:
    """Append events to several streams, all or none."""
    streams = [one.stream for one in request.appends]
    if len(set(streams)) < len(streams):
        raise InvalidArgument("a stream has one entry", reason="stream_repeated")
    events = [event for one in request.appends for event in one.events]
    if len(events) > MAX_EVENTS:
        raise InvalidArgument(f"{len(events)} events at once", reason="too_many", limit=MAX_EVENTS)
    for event in events:
        _check_untold(event.event, catalog)
    prepared = [
        (one.stream, one.expected_version, [(event, orjson.dumps(event.data)) for event in one.events])
        for one in request.appends
    ]

    def put(tx: Transaction) -> AppendedMany:
        appended = [_put(tx, *one) for one in prepared]
        seq = max(event.seq or 0 for told in appended for event in told)
        return AppendedMany(
            appended=[
                AppendedTo(
                    stream=stream,
                    version=told[-1].version or 0,
                    event_ids=[event.event_id for event in told],
                )
                for stream, told in zip(streams, appended, strict=True)
            ],
            seq=seq,
            cursor=log.cursor(seq),
            deduplicated=not tx.told,
        )

    return await database.write(put)


def _put(
    tx: Transaction, stream: str, expected: ExpectedVersion, events: Sequence[tuple[NewEvent, bytes]]
) -> Sequence[StoredEvent]:
    """Append to one stream. What is stored already is known by its id, whatever the version is by now."""
    before = len(tx.told)
    return [
        tx.tell_raw(
            event.event,
            data,
            event_id=event.event_id,
            stream=stream,
            expected_version=expected if len(tx.told) == before else "any",
            cause=False,
        )
        for event, data in events
    ]


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


def _position(cursor: str | None, log: EventLog, hub: Hub) -> int | None:
    if cursor is None:
        return None
    place = log.locate(cursor, hub.head)
    if place.gap == "other_log":
        raise InvalidArgument("the cursor is of another log", reason="other_log")
    return place.seq
