"""What is asked of completions and conversations."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ksi_common.events.completion import Accepted, Async, Cancel, CancelReply, Step, StreamCompletion
from ksi_common.events.completion_queue import (
    Cleared,
    ClearSession,
    Paused,
    PauseQueue,
    ResumeQueue,
    Retries,
    RetryStatus,
    SessionState,
    SessionStatus,
)
from ksi_common.events.completion_status import Overview, Status
from ksi_common.events.conversation import Fork, Forked, Get, List, Listed, Messages
from ksi_completion.budget_holds import BudgetHolds
from ksi_completion.completion_service import CompletionService
from ksi_completion.composition import PARTS
from ksi_completion.conversations import Conversations
from ksi_completion.injection_handlers import send_unsent
from ksi_completion.injections import Injections
from ksi_completion.managers import take_up
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.rows import REFERRED
from ksi_daemon.plugin import (
    Bus,
    Referrers,
    Service,
    Services,
    handler,
    hookimpl,
    scripts,
)


@hookimpl
def ksi_migrations() -> Mapping[int, str]:
    """Give the tables of completions."""
    return scripts("ksi_completion")


@hookimpl
def ksi_services() -> Sequence[Service[Any]]:
    """Offer the parts."""
    return PARTS


@hookimpl
async def ksi_startup(services: Services) -> None:
    """Say which files rows name, and take up what an earlier daemon left open."""
    services.get(Referrers).add("completion", REFERRED)
    await take_up(services)
    await services.get(CompletionService).recover()


@hookimpl
async def ksi_serve(bus: Bus, services: Services) -> None:
    """Work on completions."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(services.get(BudgetHolds).serve(), name="holds of budgets")
        tasks.create_task(send_unsent(services.get(Injections), bus), name="injections")
        tasks.create_task(services.get(CompletionService).serve(), name="completions")


@hookimpl
async def ksi_drain(services: Services) -> None:
    """Let answers that are being made come to their end; one broken off is made anew at the next start."""
    await services.get(CompletionService).drain()


@handler
async def async_(request: Async, service: CompletionService) -> Accepted:
    """Accept a completion."""
    return await service.accept(request)


@handler
async def stream(request: StreamCompletion, service: CompletionService) -> AsyncIterator[Step]:
    """Accept a completion and follow it."""
    async with aclosing(service.stream(request)) as steps:
        async for step in steps:
            yield step


@handler
async def cancel(request: Cancel, service: CompletionService) -> CancelReply:
    """Stop a completion."""
    return await service.cancel(request.request_id)


@handler
async def status(request: Status, service: CompletionService) -> Overview:
    """Describe one completion, or the queue."""
    return await service.status(request.request_id, include_response=request.include_response)


@handler
async def pause(request: PauseQueue, service: CompletionService, providers: ProviderManager) -> Paused:
    """Begin nothing more."""
    if request.provider is not None:
        providers.get(request.provider)
    return await service.pause(request)


@handler
async def resume(request: ResumeQueue, service: CompletionService) -> Paused:
    """Begin again."""
    return await service.resume(request)


@handler
async def clear_session(request: ClearSession, service: CompletionService) -> Cleared:
    """End what is queued in a session."""
    return await service.clear(request.session_id)


@handler
async def session_status(request: SessionStatus, service: CompletionService) -> SessionState:
    """Describe a session."""
    return await service.session_status(request.session_id)


@handler
async def retry_status(request: RetryStatus, service: CompletionService) -> Retries:
    """Describe what waits for its next try."""
    return await service.retry_status(request.session_id)


@handler
async def fork(request: Fork, service: CompletionService) -> Forked:
    """Begin a session that goes on from another."""
    return await service.fork(request)


@handler
async def list_(request: List, conversations: Conversations) -> Listed:
    """List conversations."""
    return await conversations.list(request)


@handler
async def get(request: Get, conversations: Conversations) -> Messages:
    """Read one conversation."""
    return await conversations.get(request.session_id, limit=request.limit, offset=request.offset)
