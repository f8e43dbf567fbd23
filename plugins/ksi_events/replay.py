"""The log, gone through again, as clients ask for it."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from ksi_common.events.event import FromCursor, FromTime
from ksi_common.events.replay import Replay, Replayed, TableCompared, TableLeftOut
from ksi_daemon.plugin import (
    EventLog,
    FailedPrecondition,
    Hub,
    InvalidArgument,
    Projections,
    Replays,
    ReplayStep,
    handler,
    parse_time,
)


@handler
async def replay(
    request: Replay, replays: Replays, projections: Projections, log: EventLog, hub: Hub
) -> AsyncIterator[Replayed]:
    """Say how far it is, page by page, and in the end what came of it."""
    if request.into == "handler":
        steps = replays.into_handler(
            _named(request),
            start=await _position(request.start, log, hub) or 0,
            end=await _position(request.end, log, hub),
            patterns=request.patterns,
            effects=request.effects,
        )
    else:
        _check_whole(request)
        if request.into == "projection":
            yield await _into_projection(_named(request), projections, log, hub)
            return
        steps = replays.into_sandbox(keep=request.keep)
    async with aclosing(steps):
        async for step in steps:
            yield _replayed(step)


def _replayed(step: ReplayStep) -> Replayed:
    return Replayed(
        applied=step.applied,
        position=step.position,
        end=step.end,
        missing=step.missing,
        failed=step.failed,
        error=step.error,
        held_back=step.held_back,
        done=step.done,
        tables=[
            TableCompared(
                table=found.table, plugin=found.plugin, rows=found.rows, difference=found.difference
            )
            for found in step.compared
        ],
        not_compared=[TableLeftOut(plugin=plugin, table=table) for plugin, table in step.left_out],
        socket=step.socket,
    )


async def _into_projection(name: str, projections: Projections, log: EventLog, hub: Hub) -> Replayed:
    """Build it again, and wait for the swap."""
    found = projections.named(name)
    if log.horizon:
        raise FailedPrecondition(
            f"the log has lost what is before {log.horizon + 1}",
            reason="history_gone",
            hint="projection:rebuild has partial=true",
        )
    made = await found.rebuild()
    await found.wait_swapped(made)
    return Replayed(
        applied=made.applied, position=made.position, end=hub.head, missing=made.missing, done=True
    )


def _named(request: Replay) -> str:
    if request.name is None:
        raise InvalidArgument(f"name is needed: which {request.into}?", field="name")
    return request.name


def _check_whole(request: Replay) -> None:
    if request.keep and request.into != "sandbox":
        raise InvalidArgument("keep is for sandboxes", field="keep")
    if request.start or request.end or request.patterns or request.effects:
        raise InvalidArgument(
            f"a {request.into} is made of the whole log, and has no effects: "
            "start, end, patterns and effects are for handlers",
            field="into",
        )


async def _position(place: FromCursor | FromTime | None, log: EventLog, hub: Hub) -> int | None:
    match place:
        case FromCursor(cursor=cursor):
            found = log.locate(cursor, hub.head)
            if found.gap is not None:
                raise InvalidArgument(f"the cursor leads nowhere in this log: {found.gap}", reason=found.gap)
            return found.seq
        case FromTime(time=time):
            return await log.position_at(parse_time(time))
        case None:
            return None
