"""Projections, as clients have them."""

from collections.abc import Sequence
from typing import Any

from ksi_common.events.projection import (
    Entries,
    Entry,
    Get,
    Key,
    List,
    ProjectionDetails,
    ProjectionList,
    ProjectionStatus,
    Query,
    Rebuild,
    Rebuilding,
)
from ksi_daemon.plugin import (
    EventLog,
    FailedPrecondition,
    Hub,
    InvalidArgument,
    Projection,
    Projections,
    handler,
)

REPLY_BYTES = 1024 * 1024
"""Of the entries of one reply, about: lists page by bytes, too."""


@handler
async def list_projections(_: List, projections: Projections) -> ProjectionList:
    """List all, by name."""
    found = [ProjectionStatus(**await _status(each, projections)) for each in projections.all]
    return ProjectionList(projections=found, count=len(found))


@handler
async def get_projection(
    request: Get, projections: Projections, log: EventLog, hub: Hub
) -> ProjectionDetails:
    """Tell how far one is, and what it says."""
    found = projections.named(request.name)
    if request.cursor is not None:
        place = log.locate(request.cursor, hub.head)
        if place.gap is not None:
            raise InvalidArgument(f"the cursor leads nowhere in this log: {place.gap}", reason=place.gap)
        await found.wait_for(place.seq)
    value = None
    if request.key is not None or found.declaration.kind == "document":
        value = await projections.find(request.name, _key(request.key if request.key is not None else ""))
    status = await _status(found, projections)
    return ProjectionDetails(**status, found=value is not None, value=value)


@handler
async def query_projection(request: Query, projections: Projections) -> Entries:
    """Read entries by pages."""
    after = None if request.after is None else _key(request.after)
    found = await projections.page(request.name, where=request.where, after=after, limit=request.limit)
    entries = [Entry(key=_plain(key), value=dict(value)) for key, value in found]
    kept = _within(entries, REPLY_BYTES)
    more = len(kept) < len(entries) or len(entries) == request.limit
    return Entries(entries=kept, count=len(kept), next=_plain(found[len(kept) - 1][0]) if more else None)


@handler
async def rebuild_projection(request: Rebuild, projections: Projections, log: EventLog) -> Rebuilding:
    """Begin to build one again."""
    found = projections.named(request.name)
    if log.horizon and not request.partial:
        raise FailedPrecondition(
            f"the log has lost what is before {log.horizon + 1}: it would be built without that",
            reason="history_gone",
            horizon=log.horizon,
            hint="give partial=true to build it of what there is",
        )
    made = await found.rebuild()
    return Rebuilding(name=request.name, version=made.version, generation=made.number)


async def _status(found: Projection, projections: Projections) -> dict[str, Any]:
    declared, live = found.declaration, found.live
    lag = await projections.lag(found)
    return {
        "name": declared.name,
        "plugin": declared.plugin,
        "kind": declared.kind,
        "version": declared.version,
        "patterns": list(declared.patterns),
        "status": found.status,
        "position": live.position if live else 0,
        "lag_events": lag.events,
        "lag_s": lag.seconds,
        "missing": live.missing if live else 0,
        "rebuilt_to": found.shadow.position if found.shadow else None,
        "error": found.error,
    }


def _key(key: Key) -> Sequence[str | int]:
    return key if isinstance(key, list) else (key,)


def _plain(key: Sequence[Any]) -> Key:
    return list(key) if len(key) > 1 else key[0]


def _within(entries: Sequence[Entry], limit: int) -> list[Entry]:
    """Keep what fits into a reply, and one at least."""
    kept: list[Entry] = []
    size = 0
    for entry in entries:
        size += len(entry.model_dump_json().encode())
        if kept and size > limit:
            break
        kept.append(entry)
    return kept
