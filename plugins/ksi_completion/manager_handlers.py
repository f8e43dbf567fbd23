"""What is asked of the managers of completions: providers, tokens, budgets, processes, past sessions."""

from ksi_common.events.budget import (
    Budget,
    Budgets,
    GetBudget,
    ListBudgets,
    RemoveBudget,
    Removed,
    SetBudget,
)
from ksi_common.events.completion_providers import ProvidersOf, ProvidersStatus
from ksi_common.events.conversation_reading import Export, Exported, Found, Search
from ksi_common.events.process import GetProcess, ListProcesses, Processes, ProcessRow
from ksi_common.events.token_usage import TokenUsage, UsageReport
from ksi_completion import budgets as budgeting
from ksi_completion.conversation_reading import ConversationReading
from ksi_completion.process_registry import ProcessRegistry
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.token_tracker import TokenTracker
from ksi_daemon.plugin import handler


@handler
async def provider_status(request: ProvidersOf, providers: ProviderManager) -> ProvidersStatus:
    """Describe the providers."""
    return providers.status(request.provider)


@handler
async def token_usage(request: TokenUsage, tokens: TokenTracker) -> UsageReport:
    """Add up what was used."""
    return await tokens.usage(request)


@handler
async def set_budget(request: SetBudget, budgets: budgeting.Budgets) -> Budget:
    """Set a budget."""
    return await budgets.set(request)


@handler
async def get_budget(request: GetBudget, budgets: budgeting.Budgets) -> Budget:
    """Describe a budget."""
    return await budgets.get(request)


@handler
async def list_budgets(request: ListBudgets, budgets: budgeting.Budgets) -> Budgets:
    """List budgets."""
    return Budgets(budgets=list(await budgets.all(request.session_id, request.agent_id)))


@handler
async def remove_budget(request: RemoveBudget, budgets: budgeting.Budgets) -> Removed:
    """Remove a budget."""
    return await budgets.remove(request)


@handler
async def list_processes(request: ListProcesses, registry: ProcessRegistry) -> Processes:
    """List completions or children as processes."""
    return await registry.list(request)


@handler
async def get_process(request: GetProcess, registry: ProcessRegistry) -> ProcessRow:
    """Describe one."""
    return await registry.get(request)


@handler
async def search(request: Search, reading: ConversationReading) -> Found:
    """Find what was said."""
    return await reading.search(request)


@handler
async def export(request: Export, reading: ConversationReading) -> Exported:
    """Write a session into a file."""
    return await reading.export(request)
