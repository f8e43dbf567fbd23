"""A provider that says again what another one said: for tests of programs that ask models."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from ksi_common.events.completion import Proof
from ksi_completion.providers.cassette import Cassette, Episode, RecordedFailure, key_of, request_of
from ksi_completion.providers.interface import (
    ANY_MODEL,
    Answer,
    CompletionProvider,
    Generation,
    Job,
    ProviderFailure,
    cancelled,
)
from ksi_completion.whole_path import WholePath
from ksi_daemon.plugin import DataLoss

NAME: Final = "replay"
CONCURRENCY: Final = 64
UNKNOWN: Final = "recorded"
"""Its model, where nothing is recorded."""


class ReplaySettings(BaseModel):
    """The table ``[plugins.completion.replay]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    cassette: WholePath = Field(description="The file of recorded calls, a whole path.")
    record: str | None = Field(
        None, description="The provider that is asked for what is not on the cassette, which then has it."
    )


class Replayed:
    """A Generation from the cassette."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._is_cancelled = False

    @property
    def answer(self) -> Answer:
        """What was said."""
        assert self._episode.answer is not None, "the call failed"
        return self._episode.answer

    async def deltas(self) -> AsyncIterator[str]:
        """Give the pieces as they came, without the pauses between them. Raises the failure that came."""
        for text in self._episode.deltas:
            yield text
            if self._is_cancelled:
                raise cancelled()
        if self._episode.failure is not None:
            raise self._episode.failure.failure()

    async def cancel(self) -> Proof:
        """Say no more."""
        self._is_cancelled = True
        return Proof(how="confirmed", elapsed_s=0.0)


class Recording:
    """A Generation of another provider, put on the cassette at its end. A cancelled one is not."""

    def __init__(self, job: Job, generation: Generation, cassette: Cassette) -> None:
        self._job = job
        self._generation = generation
        self._cassette = cassette
        self._is_cancelled = False

    @property
    def answer(self) -> Answer:
        """The provider's."""
        return self._generation.answer

    async def deltas(self) -> AsyncIterator[str]:
        """Give the provider's; the call is on the cassette when they end."""
        said: list[str] = []
        try:
            async for text in self._generation.deltas():
                said.append(text)
                yield text
        except ProviderFailure as failure:
            if not self._is_cancelled:
                await record(self._cassette, self._job, said, failure)
            raise
        await record(self._cassette, self._job, said, self._generation.answer)

    async def cancel(self) -> Proof:
        """Stop the provider's."""
        self._is_cancelled = True
        return await self._generation.cancel()


class ReplayProvider:
    """A CompletionProvider by a cassette. ``recorded``: who is asked for what is not on it, if anybody.

    ``settings``: None where there is no cassette. To be opened before it is used.
    """

    name = NAME
    concurrency = CONCURRENCY

    def __init__(self, settings: ReplaySettings | None, recorded: CompletionProvider | None) -> None:
        self._cassette = None if settings is None else Cassette(settings.cassette)
        self._recorded = recorded
        self._reason: str | None = "no cassette is set: put [plugins.completion.replay] into ksi.toml"
        self.models: Sequence[str] = (UNKNOWN, ANY_MODEL)
        self.keeps_sessions = recorded is not None and recorded.keeps_sessions
        self.restricts_tools = recorded is None or recorded.restricts_tools

    async def open(self) -> None:
        """Read the cassette; one that cannot be read is said by ``missing``."""
        if self._cassette is None:
            return
        self._reason = None
        try:
            await asyncio.to_thread(self._cassette.load)
        except FileNotFoundError:
            if self._recorded is None:
                self._reason = f"there is no cassette {self._cassette.path}; set record to make it"
        except (DataLoss, OSError) as error:
            self._reason = str(error)
        others = self._recorded.models if self._recorded else ()
        self.models = list(dict.fromkeys((*(self._cassette.models or others or (UNKNOWN,)), ANY_MODEL)))

    def missing(self) -> str | None:
        """Say what is wrong with the cassette, or with who is to be recorded."""
        if self._reason is None and self._recorded is not None:
            return self._recorded.missing()
        return self._reason

    async def start(self, job: Job) -> Replayed | Recording:
        """Say it again, or have it said and recorded; raise ProviderFailure ``not_on_cassette``."""
        if self._cassette is None or self._reason is not None:
            raise ProviderFailure(self._reason or "no cassette", reason="no_cassette", kind="not_deployed")
        episode = self._cassette.take(job)
        if episode is not None:
            return Replayed(episode)
        if self._recorded is None:
            message = f"this request was not recorded: {self._cassette.why_not(job)}"
            raise ProviderFailure(message, reason="not_on_cassette", kind="invalid")
        try:
            generation = await self._recorded.start(job)
        except ProviderFailure as failure:
            await record(self._cassette, job, (), failure)
            raise
        return Recording(job, generation, self._cassette)

    async def close(self) -> None:
        """Nothing runs; who is recorded is closed by who opened it."""


async def record(
    cassette: Cassette, job: Job, said: Sequence[str], outcome: Answer | ProviderFailure
) -> None:
    """Put a call on the cassette; raise ProviderFailure where the file takes nothing."""
    request = request_of(job)
    answer = outcome if isinstance(outcome, Answer) else None
    failure = None if isinstance(outcome, Answer) else RecordedFailure.of(outcome)
    try:
        await cassette.add(Episode(key_of(request), request, list(said), answer, failure))
    except OSError as error:
        message = f"cannot record on {cassette.path}: {error.strerror}"
        raise ProviderFailure(message, reason="not_recorded", kind="invalid") from error
