"""How the parts of completions are put together: each is a service, opened in order of need."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from ksi_common.paths import Paths
from ksi_completion.acceptance import Acceptance
from ksi_completion.advancing import Advancing
from ksi_completion.budgets import Budgets
from ksi_completion.circuit_breakers import CircuitBreakers
from ksi_completion.completion_service import CompletionService
from ksi_completion.conductor import Conductor
from ksi_completion.conversations import Conversations
from ksi_completion.dead_completions import DeadCompletions
from ksi_completion.ending import Ending
from ksi_completion.injections import Injections
from ksi_completion.jobs import Jobs
from ksi_completion.managers import MANAGERS
from ksi_completion.next_tries import NextTries
from ksi_completion.open_completions import OpenCompletions
from ksi_completion.prompts import Prompts
from ksi_completion.provider_manager import ProviderManager, has_model
from ksi_completion.providers.configured import configured
from ksi_completion.providers.embedded import EmbeddedProvider
from ksi_completion.providers.interface import CompletionProvider
from ksi_completion.providers.mock import MockProvider
from ksi_completion.providers.replay import ReplayProvider
from ksi_completion.recovery import Recovery
from ksi_completion.response_cache import ResponseCache
from ksi_completion.responses import Responses
from ksi_completion.retry_manager import RetryManager
from ksi_completion.running import Means
from ksi_completion.session_manager import SessionManager
from ksi_completion.settings import PROVIDER, CompletionSettings
from ksi_completion.stall import Stall
from ksi_completion.storing import Storing
from ksi_completion.token_tracker import TokenTracker
from ksi_daemon.plugin import (
    Blobs,
    Bus,
    Clock,
    Database,
    DeadLetters,
    HealthChecks,
    InvalidArgument,
    Leases,
    Processes,
    Service,
    Settings,
)


@asynccontextmanager
async def _settings(settings: Settings) -> AsyncIterator[CompletionSettings]:
    yield CompletionSettings.of(settings)


@asynccontextmanager
async def _providers(
    processes: Processes, paths: Paths, settings: CompletionSettings, breakers: CircuitBreakers
) -> AsyncIterator[ProviderManager]:
    embedded = EmbeddedProvider(processes, paths.run, idle_s=settings.worker_idle_s, worker=settings.worker)
    mocked = MockProvider(settings.mocking)
    asked = [embedded, *configured(processes, paths, settings.providers), mocked]
    replaying = ReplayProvider(settings.replay, _recorded(settings, asked))
    await replaying.open()
    _check_default(settings, [*asked, replaying])
    _check_aliases(settings, [*asked, replaying])
    providers = ProviderManager(
        [*asked, replaying],
        breakers,
        default=settings.provider,
        default_model=settings.model,
        on_request=[mocked.name, replaying.name],
        aliases=settings.aliases,
    )
    try:
        yield providers
    finally:
        await providers.close()


def _recorded(
    settings: CompletionSettings, providers: Sequence[CompletionProvider]
) -> CompletionProvider | None:
    """Find the provider whose answers are to be recorded; raise InvalidArgument where there is none."""
    if settings.replay is None or settings.replay.record is None:
        return None
    for provider in providers:
        if provider.name == settings.replay.record:
            return provider
    raise _no_provider("replay.record", settings.replay.record, providers)


def _check_default(settings: CompletionSettings, providers: Sequence[CompletionProvider]) -> None:
    default = settings.provider
    if default is not None and default not in (provider.name for provider in providers):
        raise _no_provider(f"provider (or {PROVIDER})", default, providers)


def _check_aliases(settings: CompletionSettings, providers: Sequence[CompletionProvider]) -> None:
    models = {provider.name: provider.models for provider in providers}
    for alias, candidates in settings.aliases.items():
        for provider, model in candidates:
            if provider not in models:
                raise _no_provider(f"models.{alias}", provider, providers)
            # One without any is not set up yet, and is passed over until it is.
            if models[provider] and not has_model(models[provider], model):
                raise InvalidArgument(
                    f'setting plugins.completion.models.{alias}: {provider} has no model "{model}"',
                    hint=f"it has: {', '.join(models[provider])}",
                    reason="bad_setting",
                )


def _no_provider(setting: str, name: str, providers: Sequence[CompletionProvider]) -> InvalidArgument:
    return InvalidArgument(
        f'setting plugins.completion.{setting}: there is no provider "{name}"',
        hint=f"there are: {', '.join(provider.name for provider in providers)}",
        reason="bad_setting",
    )


@asynccontextmanager
async def _responses(paths: Paths, blobs: Blobs) -> AsyncIterator[Responses]:
    async with Responses(paths.home, blobs) as responses:
        yield responses


@asynccontextmanager
async def _conversations(
    database: Database, responses: Responses, blobs: Blobs
) -> AsyncIterator[Conversations]:
    yield Conversations(database, responses, blobs)


@asynccontextmanager
async def _sessions(
    database: Database, leases: Leases, settings: CompletionSettings
) -> AsyncIterator[SessionManager]:
    yield SessionManager(database, leases, session_queue=settings.session_queue)


@asynccontextmanager
async def _storing(clock: Clock, providers: ProviderManager, health: HealthChecks) -> AsyncIterator[Storing]:
    storing = Storing(clock)
    health.watch_providers(lambda: storing.noted_in(providers.health()))
    yield storing


@asynccontextmanager
async def _ending(
    database: Database,
    clock: Clock,
    responses: Responses,
    sessions: SessionManager,
    storing: Storing,
    tokens: TokenTracker,
) -> AsyncIterator[Ending]:
    yield Ending(
        database=database,
        clock=clock,
        responses=responses,
        sessions=sessions,
        tokens=tokens,
        storing=storing,
    )


@asynccontextmanager
async def _tries(
    database: Database,
    clock: Clock,
    sessions: SessionManager,
    storing: Storing,
    tokens: TokenTracker,
    budgets: Budgets,
    settings: CompletionSettings,
) -> AsyncIterator[NextTries]:
    yield NextTries(
        database=database,
        clock=clock,
        sessions=sessions,
        tokens=tokens,
        budgets=budgets,
        storing=storing,
        attempts=settings.attempts,
    )


@asynccontextmanager
async def _dead(
    database: Database, letters: DeadLetters, leases: Leases, clock: Clock, tokens: TokenTracker
) -> AsyncIterator[DeadCompletions]:
    yield DeadCompletions(database, letters, leases, clock, tokens)


@asynccontextmanager
async def _recovery(
    database: Database,
    responses: Responses,
    sessions: SessionManager,
    ending: Ending,
    tries: NextTries,
    processes: Processes,
) -> AsyncIterator[Recovery]:
    yield Recovery(
        database=database,
        responses=responses,
        sessions=sessions,
        ending=ending,
        tries=tries,
        processes=processes,
    )


@asynccontextmanager
async def _jobs(database: Database, blobs: Blobs, conversations: Conversations) -> AsyncIterator[Jobs]:
    yield Jobs(database, blobs, conversations)


@asynccontextmanager
async def _opened(jobs: Jobs) -> AsyncIterator[OpenCompletions]:
    yield OpenCompletions(jobs)


@asynccontextmanager
async def _means(
    database: Database,
    bus: Bus,
    clock: Clock,
    settings: CompletionSettings,
    providers: ProviderManager,
    sessions: SessionManager,
    tries: NextTries,
    storing: Storing,
    jobs: Jobs,
    budgets: Budgets,
    cache: ResponseCache,
) -> AsyncIterator[Means]:
    yield Means(
        database=database,
        bus=bus,
        clock=clock,
        providers=providers,
        retries=RetryManager(attempts=settings.attempts, first_delay_s=settings.retry_delay_s),
        sessions=sessions,
        tries=tries,
        storing=storing,
        jobs=jobs,
        budgets=budgets,
        cache=cache,
        stall=Stall(first_s=settings.first_s, idle_s=settings.stall_s),
    )


@asynccontextmanager
async def _advancing(
    means: Means, opened: OpenCompletions, ending: Ending, recovery: Recovery, dead: DeadCompletions
) -> AsyncIterator[Advancing]:
    yield Advancing(means=means, opened=opened, ending=ending, recovery=recovery, dead=dead)


@asynccontextmanager
async def _conductor(
    clock: Clock,
    settings: CompletionSettings,
    providers: ProviderManager,
    dead: DeadCompletions,
    recovery: Recovery,
    opened: OpenCompletions,
    advancing: Advancing,
) -> AsyncIterator[Conductor]:
    yield Conductor(
        clock=clock,
        opened=opened,
        advancing=advancing,
        providers=providers,
        recovery=recovery,
        dead=dead,
        concurrency=settings.concurrency,
    )


@asynccontextmanager
async def _service(
    database: Database,
    blobs: Blobs,
    clock: Clock,
    paths: Paths,
    settings: CompletionSettings,
    providers: ProviderManager,
    sessions: SessionManager,
    ending: Ending,
    storing: Storing,
    tries: NextTries,
    dead: DeadCompletions,
    opened: OpenCompletions,
    conductor: Conductor,
    injections: Injections,
) -> AsyncIterator[CompletionService]:
    yield CompletionService(
        database=database,
        clock=clock,
        acceptance=Acceptance(
            database=database,
            blobs=blobs,
            clock=clock,
            prompts=Prompts([paths.home / "lib", *settings.prompt_roots]),
            providers=providers,
            sessions=sessions,
            injections=injections,
        ),
        conductor=conductor,
        opened=opened,
        ending=ending,
        sessions=sessions,
        tries=tries,
        storing=storing,
        dead=dead,
        limit=settings.queue,
    )


PARTS: Final[Sequence[Service[Any]]] = (
    Service(CompletionSettings, _settings),
    *MANAGERS,
    Service(ProviderManager, _providers),
    Service(Responses, _responses),
    Service(Conversations, _conversations),
    Service(SessionManager, _sessions),
    Service(Storing, _storing),
    Service(Ending, _ending),
    Service(NextTries, _tries),
    Service(DeadCompletions, _dead),
    Service(Recovery, _recovery),
    Service(Jobs, _jobs),
    Service(OpenCompletions, _opened),
    Service(Means, _means),
    Service(Advancing, _advancing),
    Service(Conductor, _conductor),
    Service(CompletionService, _service),
)
