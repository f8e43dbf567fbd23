"""What can be set of litellm: the table ``[plugins.completion.providers.litellm]``."""

from typing import Annotated

from pydantic import Field, JsonValue

from ksi_common.events.completion import ModelName
from ksi_completion.providers.section import Section
from ksi_completion.whole_path import KeyFile
from ksi_daemon.plugin import Seconds


class LitellmModel(Section):
    """A model, by the name that requests use."""

    model: str = Field(min_length=1, description="What litellm calls it: openai/gpt-5, ollama/qwen3, ...")
    api_key_env: str | None = Field(None, description="Variable that has the key; only its name stands here.")
    api_key_file: KeyFile | None = Field(None, description="File that has the key, in place of a variable.")
    api_base: str | None = Field(None, description="Another address of the service.")
    api_version: str | None = Field(None, description="As Azure wants it.")
    parameters: dict[str, JsonValue] = Field(
        default_factory=dict, description="More of what litellm takes: temperature, reasoning_effort, ..."
    )
    input_usd_per_million: float | None = Field(
        None, ge=0, description="Price of tokens of prompts, where litellm knows none."
    )
    output_usd_per_million: float | None = Field(None, ge=0, description="The same of answers.")


class LitellmSettings(Section):
    """How litellm is run. Seconds and counts."""

    models: dict[ModelName, LitellmModel] = Field(
        default_factory=dict, description="What may be asked for; the first is the default."
    )
    python: str | None = Field(
        None, description="A Python that has litellm; default: the one of `ksi install litellm`."
    )
    concurrency: int = Field(16, ge=1, le=1024, description="Answers at once.")
    request_timeout_s: float = Field(300.0, gt=0, le=3600, description="Of one request to a service.")
    idle_s: Seconds = Field(
        600.0, gt=0, description="It leaves memory, 200 MB, after this long without work."
    )
    pass_env: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list[str], description="More of the daemon's variables that it gets, as AWS_PROFILE."
    )
