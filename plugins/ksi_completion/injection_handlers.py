"""What is asked of injections."""

from collections.abc import Sequence

import structlog

from ksi_common.events.injection import (
    MAX_CONTENT,
    Batch,
    Batched,
    Clear,
    Cleared,
    Execute,
    Inject,
    Injected,
    InjectionStatus,
    Item,
    ListInjections,
    ProcessResult,
    Refused,
    Standing,
    WaitingList,
)
from ksi_completion.completion_service import CompletionService
from ksi_completion.injections import Blocked, Injections
from ksi_daemon.plugin import (
    Bus,
    Database,
    FailedPrecondition,
    OperationalError,
    Transaction,
    handler,
)

log = structlog.get_logger()

_ITEM = set(Item.model_fields) - {"session_id", "content"}


@handler
async def inject(request: Inject, injections: Injections, database: Database, bus: Bus) -> Injected:
    """Inject one text."""
    try:
        injected = await database.write(lambda tx: injections.queue_in(tx, request))
    except Blocked:
        injections.note_blocked()
        raise
    if injected.mode == "direct":
        await send(injected.injection_id, injections, bus)
    return injected


@handler
async def batch(request: Batch, injections: Injections, database: Database, bus: Bus) -> Batched:
    """Inject several texts."""
    return await _inject_all(request.injections, injections, database, bus)


@handler
async def execute(request: Execute, injections: Injections, database: Database, bus: Bus) -> Batched:
    """Inject one text into several sessions."""
    how = request.model_dump(include=_ITEM)
    items = [Item(session_id=name, content=request.content, **how) for name in request.target_sessions]
    return await _inject_all(items, injections, database, bus)


@handler
async def process_result(
    request: ProcessResult,
    injections: Injections,
    service: CompletionService,
    database: Database,
    bus: Bus,
) -> Batched:
    """Inject an answer."""
    found = (await service.status(request.request_id, include_response=True)).completion
    if found is None or not found.response:
        raise FailedPrecondition(
            f"completion {request.request_id} has no answer to inject", reason="no_answer"
        )
    content = "\n\n".join(part for part in (request.guidance, found.response) if part)
    if len(content) > MAX_CONTENT:
        raise FailedPrecondition(
            f"the answer to {request.request_id} is too long to inject: {len(content)} characters",
            reason="answer_too_long",
            limit=MAX_CONTENT,
        )
    how = request.model_dump(include=_ITEM) | {"after_request": request.request_id}
    items = [Item(session_id=name, content=content, **how) for name in request.target_sessions]
    return await _inject_all(items, injections, database, bus)


@handler
async def list_injections(request: ListInjections, injections: Injections) -> WaitingList:
    """List what waits."""
    return await injections.listed(request.session_id)


@handler
async def clear_injections(request: Clear, injections: Injections, database: Database) -> Cleared:
    """Drop what waits."""
    return await database.write(lambda tx: injections.clear_in(tx, request.session_id))


@handler
async def injection_status(request: InjectionStatus, injections: Injections) -> Standing:  # noqa: ARG001 - says which event
    """Tell how injections stand."""
    return await injections.status()


async def send(injection_id: str, injections: Injections, bus: Bus) -> None:
    """Ask what a direct one is to ask, once however often this is called. What is refused is dropped."""
    request = await injections.request_of(injection_id)
    try:
        await bus.call(request)
    except OperationalError:
        await injections.drop(injection_id)
        raise
    await injections.sent(injection_id)


async def send_unsent(injections: Injections, bus: Bus) -> None:
    """Ask what an earlier daemon had taken on, and did not come to ask."""
    for injection_id in await injections.unsent():
        try:
            await send(injection_id, injections, bus)
        except OperationalError as error:
            log.warning("injection.refused", injection_id=injection_id, error=error.message)
        except Exception:
            # A bug that one of them meets is no reason for completions not to be worked on.
            log.exception("injection.bug", injection_id=injection_id)


async def _inject_all(items: Sequence[Item], injections: Injections, database: Database, bus: Bus) -> Batched:
    def queue(tx: Transaction) -> Batched:
        batched = Batched(injected=[], refused=[])
        for item in items:
            try:
                batched.injected.append(injections.queue_in(tx, item))
            except Blocked as error:
                batched.refused.append(_refused(item.session_id, error))
        return batched

    batched = await database.write(queue)
    injections.note_blocked(len(batched.refused))
    for one in [one for one in batched.injected if one.mode == "direct"]:
        try:
            await send(one.injection_id, injections, bus)
        except OperationalError as error:
            batched.injected.remove(one)
            batched.refused.append(_refused(one.session_id, error))
    return batched


def _refused(session_id: str, error: OperationalError) -> Refused:
    reason = str(error.details.get("reason", error.code.lower()))
    return Refused(session_id=session_id, reason=reason, message=error.message)
