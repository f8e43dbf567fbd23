"""What can be set of completions: the table ``[plugins.completion]`` of ksi.toml."""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ksi_common.events.budget import BudgetKey, Limits
from ksi_common.events.completion import ModelName
from ksi_common.guessing import nearest
from ksi_completion.circuit_breakers import Candidate
from ksi_completion.injections import InjectionSettings
from ksi_completion.providers.configured import ProvidersSettings
from ksi_completion.providers.mock import NAME as MOCK
from ksi_completion.providers.mock import MockSettings
from ksi_completion.providers.replay import ReplaySettings
from ksi_completion.reservations import Limit
from ksi_completion.response_cache import CacheSettings
from ksi_completion.whole_path import WholePath
from ksi_daemon.plugin import InvalidArgument, Seconds, Settings

NAME = "completion"
CandidateName = Annotated[str, StringConstraints(pattern=r"^[^/\s]+/\S+$", max_length=256)]
"""``provider/model``."""
PROVIDER: Final = "KSI_PROVIDER"
"""The environment variable that chooses a provider for a whole run."""


class BudgetSettings(BudgetKey, Limits):
    """A table ``[[plugins.completion.budgets]]``: scope, subject and per, tokens and cost_usd."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @property
    def limit(self) -> Limit:
        """It, as a budget."""
        key = BudgetKey(scope=self.scope, subject=self.subject, per=self.per)
        return Limit(key, self.tokens, self.cost_usd, by="settings")


class CompletionSettings(BaseModel):
    """Limits and places. Seconds and counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    provider: str | None = Field(
        None,
        description="Who answers what names no provider; default: the first that can. "
        "The environment's KSI_PROVIDER goes before it.",
    )
    model: str | None = Field(
        None, description="The model, or alias, that answers what names neither a model nor a provider."
    )
    models: dict[ModelName, Annotated[list[CandidateName], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Aliases: a name for models of providers, the first choice first, as in "
        'sonnet = ["claude-cli/sonnet", "litellm/sonnet"]; where one fails, the next is asked.',
    )
    breaker_failures: int = Field(
        5, ge=1, description="A model that fails so often in a row is left alone for a while."
    )
    breaker_open_s: Seconds = Field(
        10.0,
        gt=0,
        description="For how long; twice as long each time that it fails again, up to 5 minutes.",
    )
    concurrency: int = Field(
        4,
        ge=1,
        le=1024,
        description="At work at once, over all sessions; of the embedded model, two.",
    )
    session_queue: int = Field(100, ge=1, description="Open completions of one session; one more is refused.")
    queue: int = Field(10_000, ge=1, description="Open completions altogether; one more is refused.")
    attempts: int = Field(3, ge=1, le=10, description="Tries of one completion that a provider fails.")
    retry_delay_s: float = Field(
        1.0,
        gt=0,
        le=60,
        description="Before the second try at most; before each next one twice as long, a minute at most.",
    )
    first_s: Seconds = Field(
        120.0,
        gt=0,
        description="A provider that says nothing of an answer for this long has stalled.",
    )
    stall_s: Seconds = Field(
        120.0,
        gt=0,
        description="So has one that has begun, and says nothing more for this long.",
    )
    prompt_roots: list[WholePath] = Field(
        default_factory=list[WholePath],
        description="Folders that a prompt_file may be in, besides $KSI_HOME/lib.",
    )
    worker: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="Command of the embedded model's worker, in place of the built-in one."
    )
    worker_idle_s: Seconds = Field(
        600.0,
        gt=0,
        description="The embedded model leaves memory after this long without work.",
    )

    budgets: list[BudgetSettings] = Field(
        default_factory=list[BudgetSettings],
        description='What may be used: tables of scope (session, agent, all), subject ("*": each), '
        "per (ever, day), tokens, cost_usd.",
    )
    cache: CacheSettings | None = Field(
        None, description="Answers are given again to the same request; without the table they are not."
    )
    injection: InjectionSettings = Field(
        InjectionSettings.model_construct(),
        description="What a session may be given: max_depth, max_tokens, max_per_minute.",
    )
    mock: MockSettings | None = Field(
        None,
        description="How the provider mock answers; without the table, or provider, it does not.",
    )

    replay: ReplaySettings | None = Field(
        None, description="Where the provider replay has its answers from; without the table it has none."
    )

    providers: ProvidersSettings = Field(
        ProvidersSettings.model_construct(),
        description="Tables of the providers litellm, claude-cli and jsonl-cli.",
    )

    @property
    def aliases(self) -> Mapping[str, Sequence[Candidate]]:
        """What names of models stand for."""
        return {
            alias: [Candidate(*name.split("/", 1)) for name in names] for alias, names in self.models.items()
        }

    @property
    def mocking(self) -> MockSettings | None:
        """How the mock provider answers, where it may."""
        return self.mock or (MockSettings() if self.provider == MOCK else None)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read the plugin's table; raise InvalidArgument that names the key."""
        chosen = {"provider": provider} if (provider := os.environ.get(PROVIDER)) else {}
        try:
            return cls.model_validate(settings.plugins.get(NAME, {}) | chosen)
        except ValidationError as error:
            raise _refusal(error, cls, settings) from None


def _refusal(error: ValidationError, model: type[BaseModel], settings: Settings) -> InvalidArgument:
    # Without the input: it may be a key that stands in the wrong place.
    problem = error.errors(include_url=False, include_input=False)[0]
    path = ("plugins", NAME, *problem["loc"])
    key, where = ".".join(map(str, path)), settings.origin(path)
    if problem["type"] != "extra_forbidden":
        return InvalidArgument(f"setting {key}: {problem['msg']}{where}", reason="bad_setting")
    near = nearest(str(problem["loc"][-1]), _keys(model, problem["loc"][:-1]))
    hint = f'did you mean "{near[0]}"?' if near else "docs/reference/settings.md lists them"
    return InvalidArgument(f'there is no setting "{key}"{where}', hint=hint, reason="unknown_setting")


def _keys(table: type[BaseModel], path: Sequence[int | str]) -> Sequence[str]:
    """List the keys of the table at a path below another."""
    for part in path:
        fields = {info.alias or name: info for name, info in table.model_fields.items()}
        if part in fields:  # else it is a key, or an index, that is the user's own
            kinds = [fields[str(part)].annotation, *get_args(fields[str(part)].annotation)]
            tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
            table = tables[0] if tables else table
    return [info.alias or name for name, info in table.model_fields.items()]
