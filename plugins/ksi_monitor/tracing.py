"""What is asked of correlations."""

from typing import Final

import orjson
from pydantic import JsonValue

from ksi_common.events.correlation import (
    Chain,
    Current,
    Figures,
    GetChain,
    GetCurrent,
    GetStats,
    GetTrace,
    GetTree,
    Stats,
    Trace,
    Tree,
    Widest,
)
from ksi_daemon.plugin import Damage, EventEnvelope, EventLog, LogQuery, NotFound, format_time, handler
from ksi_monitor.correlations import Correlation, Node, branches, fitting, gather

MAX_CHILDREN: Final = 1000
LATELY: Final = 10_000
"""Events that figures are made of."""
_PAGES: Final = 40
"""Of the log, at most, for these: a page ends where it has about 2 MiB."""
_LARGEST: Final = 10


@handler
async def trace(request: GetTrace, envelope: EventEnvelope, log: EventLog) -> Trace:
    """Tell how one request went."""
    correlation_id = request.correlation_id or envelope.correlation_id
    found = await gather(log, correlation_id)
    if not found.nodes:
        raise NotFound(
            f"the log has nothing of correlation {correlation_id!r}",
            reason="unknown_correlation",
            hint="requests that change nothing leave no trace in it",
        )
    root = found.root(correlation_id)
    children = [node for node in found.nodes if node.parent is root][:MAX_CHILDREN]
    return Trace.model_construct(
        correlation_id=correlation_id,
        parent_id=root.causation_id,
        event_name=root.name,
        created_at=format_time(found.began_us),
        completed_at=format_time(found.ended_us),
        duration_ms=(found.ended_us - found.began_us) / 1000,
        data=await _data_of(root, log),
        children=[found.step(node) for node in children],
        events=len(found.nodes),
        result=_last_word(found, "result"),
        error=_last_word(found, "error"),
        truncated=found.truncated,
        damaged=len(found.damaged),
    )


@handler
async def chain(request: GetChain, envelope: EventEnvelope, log: EventLog) -> Chain:
    """List what one request led to."""
    return await chain_of(request.correlation_id or envelope.correlation_id, log, limit=request.limit)


async def chain_of(correlation_id: str, log: EventLog, *, limit: int) -> Chain:
    """List the events of a correlation id, in the order of the log."""
    found = await gather(log, correlation_id, limit)
    nodes, cut = fitting(found.nodes)
    return Chain.model_construct(
        correlation_id=correlation_id,
        chain_length=len(nodes),
        chain=[found.step(node) for node in nodes],
        truncated=cut or found.truncated,
        damaged=len(found.damaged),
    )


@handler
async def tree(request: GetTree, envelope: EventEnvelope, log: EventLog) -> Tree:
    """Show what one request led to."""
    correlation_id = request.correlation_id or envelope.correlation_id
    found = await gather(log, correlation_id)
    top, count, cut = branches(found)
    return Tree.model_construct(
        correlation_id=correlation_id,
        tree=top,
        count=count,
        truncated=cut or found.truncated,
        damaged=len(found.damaged),
    )


@handler
async def stats(_: GetStats, log: EventLog) -> Stats:
    """Tell figures of the newest events."""
    spans: dict[str, list[int]] = {}
    seen, before, since = 0, None, None
    for _page in range(_PAGES):
        damaged: list[Damage] = []
        page, more = await log.query(LogQuery(after=before, limit=min(LATELY - seen, 1000)), damaged=damaged)
        for event in page:
            spans.setdefault(event.correlation_id, []).append(event.time_us)
            since = event.time
        seen += len(page)
        places = [event.seq or 0 for event in page] + [damage.seq for damage in damaged]
        if not more or not places or seen >= LATELY:
            break
        before = min(places)
    return Stats(correlation_stats=_figures(spans, seen, since))


@handler
async def current(_: GetCurrent, envelope: EventEnvelope, log: EventLog) -> Current:
    """Tell the ids of the request itself."""
    cause = await log.get(envelope.causation_id) if envelope.causation_id is not None else None
    parent = cause.correlation_id if cause is not None else None
    return Current(
        current_correlation_id=envelope.correlation_id,
        parent_correlation_id=parent if parent != envelope.correlation_id else None,
        event_id=envelope.event_id,
        causation_id=envelope.causation_id,
    )


async def _data_of(root: Node, log: EventLog) -> JsonValue:
    stored = await log.get(root.event_id) if root.kind == "notification" else None
    return None if stored is None else orjson.loads(stored.data)


def _last_word(found: Correlation, name: str) -> JsonValue:
    said = found.last_words.get(name)
    return None if said is None else orjson.loads(said)


def _figures(spans: dict[str, list[int]], seen: int, since: str | None) -> Figures:
    sizes = [
        Widest(correlation_id=name, events=len(times), duration_ms=(max(times) - min(times)) / 1000)
        for name, times in spans.items()
    ]
    count = len(sizes) or 1
    return Figures(
        events=seen,
        correlations=len(sizes),
        mean_events=round(seen / count, 3),
        mean_duration_ms=round(sum(size.duration_ms for size in sizes) / count, 3),
        largest=sorted(sizes, key=lambda size: (-size.events, size.correlation_id))[:_LARGEST],
        since=since,
    )
