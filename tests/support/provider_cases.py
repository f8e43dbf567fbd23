"""Every provider, and what must be asked of it so that it answers, goes on for ever, or refuses."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ksi_completion.providers import embedded
from ksi_completion.providers.claude_cli import ClaudeCliProvider
from ksi_completion.providers.claude_settings import ClaudeCliSettings
from ksi_completion.providers.embedded import EmbeddedProvider
from ksi_completion.providers.installed import packaged, python_with
from ksi_completion.providers.interface import CompletionProvider, Job
from ksi_completion.providers.jsonl_cli import JsonlCliProvider
from ksi_completion.providers.jsonl_settings import JsonlCliSettings
from ksi_completion.providers.litellm import LitellmProvider
from ksi_completion.providers.litellm_settings import LitellmSettings
from ksi_daemon.processes import Processes
from tests.support import fake_messages, fake_openai
from tests.support.workers import ODD_WORKER, job

PARROT: Final = Path(__file__).resolve().parents[2] / "examples" / "providers" / "parrot.yaml"

NO_CLAUDE: Final = (
    None
    if packaged("claude", "claude_agent_sdk", "_bundled/claude")
    else "no Claude CLI: ./ksi install claude"
)
NO_LITELLM: Final = None if python_with("litellm", "litellm") else "no litellm: ./ksi install litellm"
"""Why tests that need them are skipped."""


@dataclass(frozen=True)
class Subject:
    """A provider in its world. Of its jobs one is answered, one goes on for ever once it has begun to answer,
    one is refused as invalid.
    """

    provider: CompletionProvider
    answered: Job
    prepare_endless: Callable[[], Job]
    invalid: Job
    text: str | None = None
    """The answer, where it is known."""


Open = Callable[[Processes, Path], AbstractAsyncContextManager[Subject]]


@asynccontextmanager
async def open_embedded(processes: Processes, folder: Path) -> AsyncIterator[Subject]:
    asked = job("What is the capital of France?", model=embedded.MODEL)
    endless = job("Tell me a long story.", model=embedded.MODEL, max_tokens=3000)
    yield Subject(
        EmbeddedProvider(processes, folder), asked, lambda: endless, job("Hi", model="no-such-model")
    )


@asynccontextmanager
async def open_odd_worker(processes: Processes, folder: Path) -> AsyncIterator[Subject]:
    provider = EmbeddedProvider(processes, folder, worker=ODD_WORKER)
    provider.models = ["odd"]
    yield Subject(provider, job("echo: one two"), lambda: job("mode:hang"), job("Hi", model="no"), "one two")


@asynccontextmanager
async def open_parrot(processes: Processes, folder: Path) -> AsyncIterator[Subject]:
    settings = JsonlCliSettings(file=PARROT)
    provider = JsonlCliProvider("parrot", processes, folder / "state", settings)
    asked, endless, invalid = (
        job(text, model="plain") for text in ("Pretty Polly", "for ever: forever", "nonsense")
    )
    yield Subject(provider, asked, lambda: endless, invalid, "Pretty Polly")


@asynccontextmanager
async def open_claude(processes: Processes, folder: Path) -> AsyncIterator[Subject]:
    async with fake_messages.fake_messages() as api:

        def endless() -> Job:
            api.plan.append(fake_messages.begins("For ", "ever"))
            return job("Go on", model="sonnet")

        provider = claude(processes, folder, api)
        tools = job("Hi", model="sonnet", allowed_tools=["Bash"])
        yield Subject(provider, job("Hi", model="sonnet"), endless, tools, "Hello")


def claude(
    processes: Processes, folder: Path, api: fake_messages.FakeMessages, **settings: object
) -> ClaudeCliProvider:
    """Give a provider whose service is on loopback."""
    key = folder / "key"
    key.write_text("fake\n")
    given = {"base_url": api.url, "api_key_file": key, **settings}
    return ClaudeCliProvider(
        processes, folder / "state", folder / "run", ClaudeCliSettings.model_validate(given)
    )


@asynccontextmanager
async def open_litellm(processes: Processes, folder: Path) -> AsyncIterator[Subject]:
    async with fake_openai.fake_openai() as api:

        def endless() -> Job:
            api.plan.append(fake_openai.begins("For ", "ever"))
            return job("Go on", model="fake")

        yield Subject(
            litellm(processes, api), job("Hi", model="fake"), endless, job("Hi", model="no"), "Hello"
        )


def litellm(processes: Processes, api: fake_openai.FakeOpenAI, **model: object) -> LitellmProvider:
    """Give a provider whose one model is on loopback."""
    known = {"model": "openai/gpt-4o", "api_base": f"{api.url}/v1", **model}
    return LitellmProvider(processes, LitellmSettings.model_validate({"models": {"fake": known}}))


CASES: Final[dict[str, tuple[Open, str | None]]] = {
    "embedded": (open_embedded, EmbeddedProvider(Processes(Path("/")), Path("/")).missing()),
    "worker": (open_odd_worker, None),
    "jsonl-cli": (open_parrot, None if shutil.which("python3") else "no python3 in PATH"),
    "claude-cli": (open_claude, NO_CLAUDE),
    "litellm": (open_litellm, NO_LITELLM),
}
"""By name: how to open it, and why it cannot be had here."""
