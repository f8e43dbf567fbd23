"""What is asked of the monitor."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ksi_common.events.correlation import Chain
from ksi_common.events.event import Query
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
    Service,
    Sink,
    Subscriptions,
    format_time,
    handler,
    hookimpl,
    parse_time,
)
from ksi_monitor.figures import figures
from ksi_monitor.followers import Follower, Followers
from ksi_monitor.sessions import page_of
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
async def get_events(request: GetEvents, bus: Bus, hub: Hub) -> EventsFound:
    """Ask event:query, and say what was asked."""
    since, until = _time(request.since), _time(request.until)
    found = await bus.call(
        Query(
            patterns=request.event_patterns,
            agent_id=request.agent_id,
            since=since,
            until=until,
            cursor=request.cursor,
            reverse=request.reverse,
            limit=request.limit,
        )
    )
    return EventsFound(
        events=found.events,
        count=found.count,
        total_events=hub.head,
        query=EventsQuery(
            event_patterns=request.event_patterns,
            agent_id=request.agent_id,
            since=since,
            until=until,
            limit=request.limit,
            reverse=request.reverse,
        ),
        next=found.next,
        damaged=found.damaged,
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


def _time(moment: str | float | None) -> str | None:
    """Give a time as RFC 3339, in UTC."""
    if moment is None:
        return None
    return format_time(parse_time(moment) if isinstance(moment, str) else round(moment * 1_000_000))
