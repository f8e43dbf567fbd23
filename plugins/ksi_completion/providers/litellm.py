"""Services on the network, by litellm: in a worker of its own, never in the daemon."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ksi_completion.providers.environment import ALWAYS, NETWORK, chosen
from ksi_completion.providers.installed import Found, advice, python_with
from ksi_completion.providers.interface import Job, ProviderFailure
from ksi_completion.providers.litellm_settings import LitellmSettings
from ksi_completion.providers.worker import WorkerSettings
from ksi_completion.providers.worker_generation import WorkerGeneration
from ksi_completion.providers.worker_link import WorkerLink, WorkerStatistics
from ksi_daemon.plugin import JsonValue, Processes

NAME: Final = "litellm"
INSTALL: Final = ("./ksi install litellm", "litellm")

START_TIMEOUT_S: Final = 120.0
"""Its import takes two seconds of a core, which others may be using."""

_SCRIPT = Path(__file__).parents[1] / "workers" / "litellm.py"


class LitellmProvider:
    """A CompletionProvider of the models that the settings name."""

    name = NAME
    keeps_sessions = False
    restricts_tools = True  # a request's own are all that a model gets

    def __init__(self, processes: Processes, settings: LitellmSettings | None = None) -> None:
        self._settings = settings = settings or LitellmSettings()
        self._processes = processes
        self.models: Sequence[str] = list(settings.models)
        self.concurrency = settings.concurrency
        self._python = Found(lambda: settings.python or python_with("litellm", "litellm"))
        self._link: WorkerLink | None = None

    def missing(self) -> str | None:
        """Say what is not installed, or not set, and what to do about it."""
        if self._python.get() is None:
            return f"litellm is not installed; {advice(*INSTALL)}"
        if not self.models:
            return "no model is set; [plugins.completion.providers.litellm.models.NAME] of ksi.toml has them"
        return None

    async def start(self, job: Job) -> WorkerGeneration:
        """Begin an answer; raise ProviderFailure. Cancelling it leaves nothing at work."""
        if problem := self.missing():
            raise ProviderFailure(problem, reason="not_installed", kind="not_deployed")
        if job.model not in self._settings.models:
            message = f"provider 'litellm' has no model {job.model!r}, only {', '.join(self.models)}"
            raise ProviderFailure(message, reason="no_model", kind="invalid")
        if not job.messages or not job.messages[-1].content.strip():
            raise ProviderFailure("the prompt is empty", reason="empty_prompt", kind="invalid")
        if self._link is None:
            self._link = self._linked()
        return await self._link.start(_restricted(job), self._options(job))

    async def close(self) -> None:
        """End the worker."""
        if self._link is not None:
            await self._link.close()

    def statistics(self) -> WorkerStatistics:
        """Say what runs."""
        return self._link.statistics() if self._link else WorkerStatistics(None, 0, 0)

    def _linked(self) -> WorkerLink:
        settings = self._settings
        keys = [model.api_key_env for model in settings.models.values() if model.api_key_env is not None]
        env = chosen((*ALWAYS, *NETWORK, *keys, *settings.pass_env))
        argv = (self._python.get() or "", "-I", str(_SCRIPT))
        return WorkerLink(
            self._processes,
            WorkerSettings(
                argv=argv, env=env, purpose=NAME, idle_s=settings.idle_s, start_timeout_s=START_TIMEOUT_S
            ),
        )

    def _options(self, job: Job) -> Mapping[str, JsonValue]:
        limit_s = self._settings.request_timeout_s
        model = self._settings.models[job.model].model_dump(mode="json")
        return {**model, "timeout_s": min(limit_s, job.timeout_s or limit_s)}


def _restricted(job: Job) -> Job:
    """Leave out what the job may not use."""
    if job.allowed_tools is None:
        return job
    return replace(job, tools=[tool for tool in job.tools if _name(tool) in job.allowed_tools])


def _name(tool: Mapping[str, JsonValue]) -> JsonValue:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else tool.get("name")
