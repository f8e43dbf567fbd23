"""What is asked of the monitor."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ksi_common.events.correlation import Chain
from ksi_common.events.monitor import (
    EventsFound,
    EventsQuery,
    GetCorrelationChain,
    GetEvents,
    GetSessionEvents,
    GetStats,
    SessionEvents,
    Stats,
    Subscribe,
    Unsubscribe,
    Unsubscribed,
)
from ksi_daemon.plugin import (
    Bus,
    Catalog,
    Clock,
    Database,
    EventEnvelope,
    EventLog,
    Hub,
    Interest,
    InvalidArgument,
    LogQuery,
    Service,
    Sink,
    Subscriptions,
    format_time,
    handler,
    hookimpl,
    parse_cursor,
    parse_time,
)
from ksi_monitor.figures import figures
from ksi_monitor.followers import Follower, Followers
from ksi_monitor.sessions import page_of, rendered
from ksi_monitor.tracing import chain_of


@hookimpl
def ksi_services() -> Sequence[Service[Any]]:
    """Offer the register of who follows."""
    return [Service(Followers, _open)]


@asynccontextmanager
async def _open() -> AsyncIterator[Followers]:
    yield Followers()


@handler
async def subscribe(
    request: Subscribe,
    sink: Sink,
    envelope: EventEnvelope,
    followers: Followers,
    subscriptions: Subscriptions,
    catalog: Catalog,
) -> None:
    """Feed the client from now on, until it goes or has had enough."""
    follower = Follower(connection_of(envelope), request.agent_id, request.subscription_id)
    interest = Interest(catalog.followed(request.event_patterns))
    await followers.run(follower, subscriptions.follow(interest, sink))


@handler
async def unsubscribe(request: Unsubscribe, envelope: EventEnvelope, followers: Followers) -> Unsubscribed:
    """End what the client began."""
    ended = await followers.end(
        connection_of(envelope), agent_id=request.agent_id, subscription_id=request.subscription_id
    )
    return Unsubscribed(
        status="unsubscribed" if ended else "not_found",
        agent_id=request.agent_id,
        subscription_id=request.subscription_id,
        ended=ended,
    )


@handler
async def get_events(request: GetEvents, log: EventLog, hub: Hub, catalog: Catalog) -> EventsFound:
    """Search the log, by pages."""
    since_us, until_us = _time_us(request.since), _time_us(request.until)
    stored, more = await log.query(
        LogQuery(
            patterns=catalog.followed(request.event_patterns),
            actor=request.agent_id,
            since_us=since_us,
            until_us=until_us,
            after=_position(request.cursor, log),
            reverse=request.reverse,
            limit=request.limit,
        )
    )
    events = [rendered(event, log) for event in stored]
    return EventsFound(
        events=events,
        count=len(events),
        total_events=hub.head,
        query=EventsQuery(
            event_patterns=request.event_patterns,
            agent_id=request.agent_id,
            since=None if since_us is None else format_time(since_us),
            until=None if until_us is None else format_time(until_us),
            limit=request.limit,
            reverse=request.reverse,
        ),
        next=events[-1].cursor if more and events else None,
    )


@handler
async def get_session_events(request: GetSessionEvents, bus: Bus, log: EventLog) -> SessionEvents:
    """Read the events of a session of completions."""
    return await page_of(request, bus, log)


@handler
async def get_correlation_chain(
    request: GetCorrelationChain, envelope: EventEnvelope, log: EventLog
) -> Chain:
    """List what one request led to."""
    return await chain_of(request.correlation_id or envelope.correlation_id, log, limit=request.limit)


@handler
async def get_stats(
    _: GetStats,
    database: Database,
    log: EventLog,
    subscriptions: Subscriptions,
    catalog: Catalog,
    clock: Clock,
) -> Stats:
    """Tell how the daemon stands."""
    return await figures(database, log, subscriptions, catalog, clock)


def connection_of(envelope: EventEnvelope) -> object:
    """Give what stands for the connection that asks; None: it is asked in process."""
    return envelope.caller.connection if envelope.caller is not None else None


def _time_us(moment: str | float | None) -> int | None:
    if moment is None or isinstance(moment, str):
        return None if moment is None else parse_time(moment)
    return round(moment * 1_000_000)


def _position(cursor: str | None, log: EventLog) -> int | None:
    if cursor is None:
        return None
    parsed = parse_cursor(cursor)
    if parsed.log_id != log.log_id:
        raise InvalidArgument("the cursor is of another log", reason="other_log")
    return parsed.seq
