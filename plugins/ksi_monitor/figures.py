"""Figures of the log, the router, subscriptions and the writer, at this moment."""

from typing import Final

from ksi_common.events.monitor import (
    LogFigures,
    RouterFigures,
    Stats,
    SubscriptionFigures,
    WriterFigures,
)
from ksi_daemon.plugin import Catalog, Clock, Database, EventLog, LogQuery, Subscriptions

MINUTE_S: Final = 60
SAMPLE: Final = 1000
"""Events that are looked at one by one; the others are counted by their positions, which have no gaps."""

_SIZE: Final = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"


async def figures(
    database: Database, log: EventLog, subscriptions: Subscriptions, catalog: Catalog, clock: Clock
) -> Stats:
    """Look at each part."""
    following = subscriptions.statistics
    writer = database.statistics
    return Stats(
        event_log=await _log_figures(database, log, subscriptions.hub.head, clock.time_us()),
        router=RouterFigures(
            plugins=len(catalog.plugins), events=len(catalog.routes), notifications=len(catalog.notifications)
        ),
        subscriptions=SubscriptionFigures(
            count=following.count,
            behind=following.behind,
            slow=following.slow,
            delivered=subscriptions.hub.delivered,
        ),
        writer=WriterFigures(waiting=writer.waiting, groups=writer.groups, units=writer.units),
    )


async def _log_figures(database: Database, log: EventLog, head: int, now_us: int) -> LogFigures:
    before = min(await log.position_at(now_us - MINUTE_S * 1_000_000), head)
    sample, _ = await log.query(LogQuery(after=max(before, head - SAMPLE), reverse=False, limit=SAMPLE))
    requests = sum(event.kind == "request" for event in sample)
    rows = await database.read(_SIZE)
    return LogFigures(
        log_id=log.log_id,
        head=head,
        cursor=log.cursor(head),
        last_minute=head - before,
        rate_per_s=round((head - before) / MINUTE_S, 3),
        by_kind={"notification": len(sample) - requests, "request": requests},
        database_bytes=rows[0][0],
    )
