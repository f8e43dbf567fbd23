"""How far behind a consumer is."""

from typing import Final

from ksi_daemon.consumers.rows import ConsumerRow
from ksi_daemon.database import Database

_ROWS: Final = 20_000
"""Of one hop to a reader: a snapshot is never held longer."""


async def lag_of(database: Database, row: ConsumerRow, head: int, now_us: int) -> tuple[int, float]:
    """Count the events that a consumer wants and has not done; give the oldest one's age in seconds."""
    names = " OR ".join("name GLOB ?" if pattern.endswith("*") else "name = ?" for pattern in row.patterns)
    sql = (
        f"SELECT count(*), min(time) FROM log WHERE seq > ? AND seq <= ? AND kind = 0 AND ({names or 0}) "  # noqa: S608
        "AND coalesce(? = stream, ? IS NULL) "
        "AND seq NOT IN (SELECT seq FROM consumer_events WHERE consumer = ? AND done = 1)"
    )
    lag, oldest = 0, now_us
    for start in range(row.position, head, _ROWS):
        parameters = (start, min(start + _ROWS, head), *row.patterns, row.stream, row.stream, row.id)
        ((number, told_us),) = await database.read(sql, parameters)
        lag += number
        oldest = min(oldest, told_us or now_us)
    return lag, max(now_us - oldest, 0) / 1e6
