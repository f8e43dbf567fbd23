"""A provider without a model: it answers at once, or as late and as badly as it is told to.

What it does with a request follows from its seed, the model, the prompt and the attempt alone, so that
neither the order of requests nor a restart changes it.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ksi_common.events.completion import Proof, Usage
from ksi_completion.providers.interface import (
    ANY_MODEL,
    Answer,
    FailureClass,
    Job,
    ProviderFailure,
    cancelled,
)

NAME: Final = "mock"
CHARACTERS_PER_TOKEN: Final = 4
MILLION: Final = 1_000_000


class MockSettings(BaseModel):
    """The table ``[plugins.completion.mock]``: how the provider "mock" answers. Seconds and counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    seed: int = Field(0, description="Another one is another course of latencies and failures.")
    models: list[str] = Field(
        ["mock"], min_length=1, description="Names of its models, the default first; it takes any other, too."
    )
    concurrency: int = Field(64, ge=1, le=1024, description="Answers at once.")
    answers: dict[str, str] = Field(
        default_factory=dict, description="The answer to a prompt, which must be the same to the letter."
    )
    answer: str | None = Field(None, description="The answer to any other; without it, the prompt again.")
    delta_characters: int = Field(64, ge=1, description="How much of an answer comes at once.")
    latency_s: float = Field(0.0, ge=0, description="Before the first word; the mean.")
    distribution: Literal["fixed", "uniform", "exponential"] = Field(
        "fixed", description="Of that latency around its mean."
    )
    delta_s: float = Field(0.0, ge=0, description="Between two pieces of an answer.")
    failure_rate: float = Field(0.0, ge=0, le=1, description="The part of attempts that fail.")
    failure_kind: FailureClass = Field("transient", description="The class of those failures.")
    retry_after_s: float | None = Field(None, ge=0, description="What those failures say of coming back.")
    failures_cost: bool = Field(default=False, description="A failed attempt has used its prompt's tokens.")
    outages: dict[str, int] = Field(
        default_factory=dict, description="How many calls of a model fail before it works; since the start."
    )
    usd_per_million_tokens: float | None = Field(None, ge=0, description="Its price; none is known without.")


class MockGeneration:
    """One answer of the provider, made as it is read."""

    def __init__(
        self, job: Job, settings: MockSettings, random: Random | None, failure: ProviderFailure | None
    ) -> None:
        self._settings = settings
        self._text = text = _text(job, settings)
        self._failure = failure
        self.latency_s = _latency_s(settings, random)
        self._is_cancelled = asyncio.Event()
        usage = _usage(job.characters, len(text), settings)
        self._answer = Answer(
            text=text,
            model=job.model,
            finish_reason="stop",
            usage=usage,
            response={
                "model": job.model,
                "result": text,
                "finish_reason": "stop",
                "usage": usage.model_dump(exclude_none=True),
            },
        )

    @property
    def answer(self) -> Answer:
        """The whole answer."""
        return self._answer

    async def deltas(self) -> AsyncIterator[str]:
        """Give the pieces of text, in their time. Raises ProviderFailure, also after a cancel."""
        settings = self._settings
        await self._pause(self.latency_s)
        if self._failure is not None:
            raise self._failure
        for begin in range(0, len(self._text), settings.delta_characters):
            if begin:
                await self._pause(settings.delta_s)
            yield self._text[begin : begin + settings.delta_characters]

    async def cancel(self) -> Proof:
        """Stop it: nothing works on it but whoever reads it, and that ends here."""
        self._is_cancelled.set()
        return Proof(how="confirmed", elapsed_s=0.0)

    async def _pause(self, seconds: float) -> None:
        if seconds > 0 and not self._is_cancelled.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._is_cancelled.wait()
            except TimeoutError:
                return
        if self._is_cancelled.is_set():
            raise cancelled()


class MockProvider:
    """A CompletionProvider in this process. ``settings``: None where nobody has allowed it."""

    name = NAME
    keeps_sessions = False
    restricts_tools = True  # it has none

    def __init__(self, settings: MockSettings | None) -> None:
        self._is_allowed = settings is not None
        self._settings = settings or MockSettings()
        self._calls: Counter[str] = Counter()
        self.models: Sequence[str] = (*self._settings.models, ANY_MODEL)
        self.concurrency = self._settings.concurrency

    def missing(self) -> str | None:
        """Say how to allow it."""
        if self._is_allowed:
            return None
        return (
            "it gives made-up answers, and nobody has allowed it; "
            "start the daemon with KSI_PROVIDER=mock, or put [plugins.completion.mock] into ksi.toml"
        )

    async def start(self, job: Job) -> MockGeneration:
        """Begin an answer, or the failure that is due."""
        settings = self._settings
        self._calls[job.model] += 1
        random = _course(job, settings)
        failure = None
        if self._calls[job.model] <= settings.outages.get(job.model, 0):
            failure = ProviderFailure(f"{job.model} is down", reason="outage")
        elif random is not None and random.random() < settings.failure_rate:
            failure = ProviderFailure(
                f"attempt {job.attempt} was to fail",
                reason="mocked",
                kind=settings.failure_kind,
                retry_after_s=settings.retry_after_s,
                usage=_usage(job.characters, 0, settings) if settings.failures_cost else None,
            )
        return MockGeneration(job, settings, random, failure)

    async def close(self) -> None:
        """Nothing runs."""


def _usage(prompt_characters: int, answer_characters: int, settings: MockSettings) -> Usage:
    """Count four characters as a token, a part of one as one."""
    prompt, answer = (
        -(-characters // CHARACTERS_PER_TOKEN) for characters in (prompt_characters, answer_characters)
    )
    price = settings.usd_per_million_tokens
    cost = None if price is None else (prompt + answer) * price / MILLION
    return Usage(prompt_tokens=prompt, completion_tokens=answer, cost_usd=cost)


def _text(job: Job, settings: MockSettings) -> str:
    prompt = job.messages[-1].content
    other = prompt if settings.answer is None else settings.answer
    return settings.answers.get(prompt, other)


def _course(job: Job, settings: MockSettings) -> Random | None:
    """Give what an attempt's latency and failure are drawn from, where anything is left to chance."""
    if settings.distribution == "fixed" and not settings.failure_rate:
        return None
    return Random(f"{settings.seed} {job.model} {job.attempt} {job.messages[-1].content}")  # noqa: S311


def _latency_s(settings: MockSettings, random: Random | None) -> float:
    mean = settings.latency_s
    if random is None:
        return mean
    match settings.distribution:
        case "uniform":
            return random.uniform(0, 2 * mean)
        case "exponential" if mean:
            return random.expovariate(1 / mean)
        case _:
            return mean
