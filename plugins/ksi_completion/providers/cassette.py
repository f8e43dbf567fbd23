"""What providers said, kept in a file to be said again: a line of JSON for each call.

    {"key": sha256 of the request, "request": {"model": …, "messages": […], …}, "deltas": ["…"],
     "answer": {…} | null, "failure": {…} | null}

Calls of the same request are said again in the order of the file. To record anew, delete the file.
"""

import asyncio
import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError

from ksi_common.events.completion import Usage
from ksi_common.records import record
from ksi_completion.providers.interface import Answer, FailureClass, Job, ProviderFailure
from ksi_daemon.plugin import DataLoss, JsonValue

_FIELDS: Final = ("model", "system", "max_tokens", "tools", "allowed_tools", "response_schema")
"""What makes a request, besides its messages: ids, attempts and time limits differ from run to run."""


@record
class RecordedFailure:
    """A ProviderFailure, as it is written."""

    message: str
    reason: str
    kind: FailureClass
    retry_after_s: float | None = None
    usage: Usage | None = None

    @classmethod
    def of(cls, failure: ProviderFailure) -> "RecordedFailure":
        """Take what a provider raised."""
        return cls(failure.message, failure.reason, failure.kind, failure.retry_after_s, failure.usage)

    def failure(self) -> ProviderFailure:
        """Give what the provider raised."""
        return ProviderFailure(
            self.message,
            reason=self.reason,
            kind=self.kind,
            retry_after_s=self.retry_after_s,
            usage=self.usage,
        )


@record
class Episode:
    """One call, from the request to its ``answer`` or ``failure``."""

    key: str
    request: Mapping[str, JsonValue]
    deltas: Sequence[str]
    answer: Answer | None = None
    failure: RecordedFailure | None = None

    def __post_init__(self) -> None:
        if (self.answer is None) == (self.failure is None):
            raise ValueError("an episode has an answer or a failure")


@cache
def _adapter() -> TypeAdapter[Episode]:
    """Make it at the first use: what is rarely read costs an idle daemon nothing."""
    return TypeAdapter(Episode)


class Cassette:
    """The calls of one file, and how far they were said again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._episodes: dict[str, list[Episode]] = defaultdict(list)
        self._played: dict[str, int] = defaultdict(int)
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Read the file, which blocks; raise FileNotFoundError, or DataLoss that names the line."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                self._keep(self._parse(line, number))

    @property
    def models(self) -> Sequence[str]:
        """Those that were asked, the first one first."""
        asked = [str(episode.request.get("model")) for them in self._episodes.values() for episode in them]
        return list(dict.fromkeys(asked))

    def take(self, job: Job) -> Episode | None:
        """Give what was said to a request, each call once; None where it was not asked so often."""
        key = key_of(request_of(job))
        episodes, played = self._episodes.get(key, ()), self._played[key]
        if played >= len(episodes):
            return None
        self._played[key] += 1
        return episodes[played]

    def why_not(self, job: Job) -> str:
        """Say why there is nothing to say to a request."""
        if count := len(self._episodes.get(key_of(request_of(job)), ())):
            return f"it is on {self.path} {count} times, and was asked once more"
        asked = job.messages[-1].content
        prompts = [_prompt(episode) for them in self._episodes.values() for episode in them]
        if asked in prompts:
            return f"{self.path} has its prompt, but with another model, history or other parameters"
        from difflib import SequenceMatcher  # noqa: PLC0415 -- for mistakes only

        near = max(
            prompts, key=lambda prompt: SequenceMatcher(None, prompt[:500], asked[:500]).ratio(), default=""
        )
        return f"it is not on {self.path}" + (f"; the nearest prompt is {near[:80]!r}" if near else "")

    async def add(self, episode: Episode) -> None:
        """Write a call to the end of the file, and count it as said; raise OSError."""
        data = orjson.dumps(_adapter().dump_python(episode, mode="json"), option=orjson.OPT_APPEND_NEWLINE)
        async with self._writing:
            await asyncio.to_thread(self._append, data)
        self._keep(episode)
        self._played[episode.key] += 1

    def _append(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600)
        with self.path.open("ab", buffering=0) as file:
            size, left = file.seek(0, os.SEEK_END), memoryview(data)
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                # Behind a half line the next one would be none, too.
                file.truncate(size)
                raise

    def _keep(self, episode: Episode) -> None:
        self._episodes[episode.key].append(episode)

    def _parse(self, line: bytes, number: int) -> Episode:
        try:
            return _adapter().validate_json(line)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise DataLoss(f"line {number} of {self.path} is no recorded call: {problem}") from None


def request_of(job: Job) -> Mapping[str, Any]:
    """Give what a request is known by."""
    fields = {name: value for name in _FIELDS if (value := getattr(job, name)) not in (None, ())}
    return fields | {"messages": [message.model_dump() for message in job.messages]}


def key_of(request: Mapping[str, Any]) -> str:
    """Name a request; the order of keys does not matter."""
    return hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _prompt(episode: Episode) -> str:
    match episode.request.get("messages"):
        case [*_, {"content": str(text)}]:
            return text
    return ""
