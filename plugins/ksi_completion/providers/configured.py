"""The providers that settings say more of: the table ``[plugins.completion.providers]``."""

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from ksi_common.events.types import Name
from ksi_common.paths import Paths
from ksi_completion.providers.claude_cli import ClaudeCliProvider
from ksi_completion.providers.claude_settings import ClaudeCliSettings
from ksi_completion.providers.interface import CompletionProvider
from ksi_completion.providers.jsonl_settings import JsonlCliSettings
from ksi_completion.providers.litellm import LitellmProvider
from ksi_completion.providers.litellm_settings import LitellmSettings
from ksi_completion.providers.section import Section
from ksi_daemon.plugin import Processes

TAKEN: Final = ("embedded", "litellm", "claude-cli", "jsonl-cli", "mock", "replay")
"""Names that no program may have."""


def _free(programs: dict[str, JsonlCliSettings]) -> dict[str, JsonlCliSettings]:
    for name in programs:
        if name in TAKEN:
            raise ValueError(f'"{name}" is the name of another provider')
    return programs


class ProvidersSettings(Section):
    """How providers are reached."""

    litellm: LitellmSettings = Field(
        LitellmSettings.model_construct(), description="Services on the network."
    )
    claude_cli: ClaudeCliSettings = Field(
        ClaudeCliSettings.model_construct(), alias="claude-cli", description="The Claude CLI."
    )
    jsonl_cli: Annotated[dict[Name, JsonlCliSettings], AfterValidator(_free)] = Field(
        default_factory=dict, alias="jsonl-cli", description="Other programs, each a provider by its name."
    )


def configured(
    processes: Processes, paths: Paths, settings: ProvidersSettings
) -> Sequence[CompletionProvider]:
    """Make them; nothing is started before it is asked."""
    state = paths.home / "state"
    providers: list[CompletionProvider] = [
        ClaudeCliProvider(processes, state, paths.run, settings.claude_cli),
        LitellmProvider(processes, settings.litellm),
    ]
    if settings.jsonl_cli:
        from ksi_completion.providers.jsonl_cli import JsonlCliProvider  # noqa: PLC0415 -- where there are some

        providers += [
            JsonlCliProvider(name, processes, state, one) for name, one in settings.jsonl_cli.items()
        ]
    return providers
