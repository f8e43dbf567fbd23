"""The managers of completions as services, opened where they are needed."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from ksi_common.paths import Paths
from ksi_completion.budget_holds import BudgetHolds
from ksi_completion.budgets import Budgets
from ksi_completion.child_registry import ChildRegistry
from ksi_completion.circuit_breakers import CircuitBreakers
from ksi_completion.completion_service import CompletionService
from ksi_completion.conversation_reading import ConversationReading
from ksi_completion.conversations import Conversations
from ksi_completion.injections import Injections
from ksi_completion.process_registry import ProcessRegistry
from ksi_completion.response_cache import ResponseCache
from ksi_completion.settings import CompletionSettings
from ksi_completion.token_tracker import TokenTracker
from ksi_daemon.plugin import Clock, Database, Processes, Service, Services


@asynccontextmanager
async def _breakers(
    database: Database, clock: Clock, settings: CompletionSettings
) -> AsyncIterator[CircuitBreakers]:
    yield CircuitBreakers(database, clock, failures=settings.breaker_failures, open_s=settings.breaker_open_s)


@asynccontextmanager
async def _budgets(database: Database, clock: Clock, settings: CompletionSettings) -> AsyncIterator[Budgets]:
    yield Budgets(database, clock, [budget.limit for budget in settings.budgets])


@asynccontextmanager
async def _tokens(database: Database, budgets: Budgets) -> AsyncIterator[TokenTracker]:
    yield TokenTracker(database, budgets.accounted)


@asynccontextmanager
async def _holds(database: Database, clock: Clock, service: CompletionService) -> AsyncIterator[BudgetHolds]:
    yield BudgetHolds(database, clock, service.pauses)


@asynccontextmanager
async def _cache(
    database: Database, clock: Clock, settings: CompletionSettings
) -> AsyncIterator[ResponseCache]:
    yield ResponseCache(database, clock, settings.cache)


@asynccontextmanager
async def _children(database: Database, clock: Clock, processes: Processes) -> AsyncIterator[ChildRegistry]:
    registry = ChildRegistry(database, clock)
    processes.add_watcher(registry)
    yield registry


@asynccontextmanager
async def _registry(database: Database, settings: CompletionSettings) -> AsyncIterator[ProcessRegistry]:
    yield ProcessRegistry(database, attempts=settings.attempts)


@asynccontextmanager
async def _reading(conversations: Conversations, paths: Paths) -> AsyncIterator[ConversationReading]:
    yield ConversationReading(conversations, paths.home)


@asynccontextmanager
async def _injections(
    database: Database, clock: Clock, settings: CompletionSettings
) -> AsyncIterator[Injections]:
    yield Injections(database, clock, settings.injection)


async def take_up(services: Services) -> None:
    """Read what an earlier daemon knew, before anything begins."""
    await services.get(ChildRegistry).bury(services.get(Processes).reaped)
    await services.get(CircuitBreakers).load()
    await services.get(Budgets).load()
    services.get(Budgets).hold_with(services.get(BudgetHolds))


MANAGERS: Final[Sequence[Service[Any]]] = (
    Service(CircuitBreakers, _breakers),
    Service(Budgets, _budgets),
    Service(TokenTracker, _tokens),
    Service(ResponseCache, _cache),
    Service(ChildRegistry, _children),
    Service(BudgetHolds, _holds),
    Service(ProcessRegistry, _registry),
    Service(Injections, _injections),
    Service(ConversationReading, _reading),
)
