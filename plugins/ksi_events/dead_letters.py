"""Dead letters, as people have them."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import orjson
from pydantic import ValidationError

from ksi_common.clock import format_time
from ksi_common.events.deadletter import (
    Discard,
    Discards,
    Edit,
    Export,
    Letter,
    Letters,
    LetterSummary,
    List,
    Redrive,
    Redrove,
    Show,
)
from ksi_common.validation import refusal
from ksi_daemon.plugin import Catalog, DatabaseDeadLetters, DeadLetter, handler

_EXPORTED_AT_ONCE: Final = 8
"""Letters in memory while they are exported; each may have a megabyte."""


@handler
async def list_letters(request: List, letters: DatabaseDeadLetters) -> Letters:
    """List, by pages."""
    found, more = await letters.page(_wanted(request), after=request.after, limit=request.limit)
    summaries = [LetterSummary.model_validate(_summary(letter)) for letter in found]
    return Letters(letters=summaries, count=len(found), next=found[-1].id if more else None)


@handler
async def show_letter(request: Show, letters: DatabaseDeadLetters) -> Letter:
    """Read one."""
    return _whole(await letters.get(request.id))


@handler
async def redrive(request: Redrive, letters: DatabaseDeadLetters) -> Redrove:
    """Try again."""
    redriven, already = await letters.redrive(request.ids)
    return Redrove(redriven=redriven, already=already)


@handler
async def edit(request: Edit, letters: DatabaseDeadLetters, catalog: Catalog) -> Letter:
    """Change the data of one, to what its event may say where a class declares that."""
    data = orjson.dumps(request.data).decode()
    event = (await letters.get(request.id)).event
    declared = catalog.declared(event)
    if declared is not None:
        try:
            declared.__pydantic_validator__.validate_json(data)
        except ValidationError as error:
            raise refusal(error, declared, event, request.data) from None
    return _whole(await letters.edit(request.id, data))


@handler
async def discard(request: Discard, letters: DatabaseDeadLetters) -> Discards:
    """Give up."""
    discarded, already = await letters.discard(request.ids, request.reason)
    return Discards(discarded=discarded, already=already)


@handler
async def export(request: Export, letters: DatabaseDeadLetters) -> AsyncIterator[Letter]:
    """Give them one by one."""
    after, more = 0, True
    while more:
        found, more = await letters.page(_wanted(request), after=after, limit=_EXPORTED_AT_ONCE, whole=True)
        for letter in found:
            after = letter.id
            yield _whole(letter)


def _wanted(request: List | Export) -> Mapping[str, str | None]:
    return {
        "kind": request.kind,
        "origin": request.origin,
        "name": request.name,
        "event": request.event,
        "state": request.state,
    }


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "kind": letter.kind,
        "origin": letter.origin,
        "name": letter.name,
        "event": letter.event,
        "event_id": letter.event_id,
        "stream": letter.stream,
        "correlation_id": letter.correlation_id,
        "actor": letter.actor,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "message": letter.message,
        "first_failed": format_time(letter.first_failed_us or 0),
        "last_failed": format_time(letter.last_failed_us or 0),
        "state": letter.state,
        "redrives": letter.redrives,
        "edited": letter.original is not None,
    }


def _whole(letter: DeadLetter) -> Letter:
    return Letter.model_validate(
        {
            **_summary(letter),
            "data": _json(letter.data),
            "reference": _json(letter.reference),
            "original": _json(letter.original),
            "causation_id": letter.causation_id,
            "version": letter.version,
            "time": None if letter.time_us is None else format_time(letter.time_us),
        }
    )


def _json(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
