"""What a provider of completions is: start, deltas, answer with usage, cancel with proof."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import field
from math import isfinite
from typing import Final, Literal, Protocol

from pydantic import JsonValue

from ksi_common.events.completion import ChatMessage, Proof, Usage
from ksi_common.records import record

FailureClass = Literal[
    "transient", "rate_limited", "stalled", "invalid", "auth", "unknown_outcome", "not_deployed"
]
"""What a failure means for another try: the first three may be tried again, the others may not."""

MAX_RETRY_AFTER_S: Final = 86_400.0
"""A service that says to come back later than that is asked again then all the same."""

ANY_MODEL: Final = "*"
"""Among a provider's models: it takes any other name, too."""


@record
class Job:
    """One attempt at one completion. ``messages``: the whole conversation, oldest first, the prompt last.

    ``tools`` and ``response_schema`` are JSON as the OpenAI API has them; ``allowed_tools`` are names of
    tools that may be used, None where nobody restricted them. ``provider_session`` is the provider's own id
    of the session, where an answer before gave one, and ``resume_at`` its id of the last good turn.
    """

    request_id: str
    session_id: str
    model: str
    messages: Sequence[ChatMessage]
    attempt: int = 1
    system: str | None = None
    max_tokens: int | None = None
    tools: Sequence[Mapping[str, JsonValue]] = ()
    allowed_tools: Sequence[str] | None = None
    response_schema: Mapping[str, JsonValue] | None = None
    provider_session: str | None = None
    resume_at: str | None = None
    agent_id: str | None = None
    timeout_s: float | None = None
    counted: int | None = None
    """Characters of ``messages``, where somebody has counted them."""

    @property
    def characters(self) -> int:
        """Count those of all messages."""
        return size_of(self.messages) if self.counted is None else self.counted


def size_of(messages: Sequence[ChatMessage]) -> int:
    """Count the characters of messages."""
    return sum([len(message.content) for message in messages])


@record
class Answer:
    """A whole answer. ``response``: what the provider gave, as it goes into the session's file.

    Whatever else it has, its ``result`` is the text, and ``model``, ``finish_reason``, ``usage`` are as here.

    ``provider_session`` and ``resume_at`` are for the Job of the session's next turn; ``structured`` is what
    a ``response_schema`` asked for, where the provider itself made it.
    """

    text: str
    model: str
    finish_reason: str
    usage: Usage
    response: Mapping[str, JsonValue] = field(default_factory=dict)
    provider_session: str | None = None
    resume_at: str | None = None
    structured: JsonValue = None


class ProviderFailure(Exception):
    """An attempt that gave no answer. ``reason``: the machine's word for the case.

    ``usage``: what it cost all the same; ``retry_after_s``: a day at most. Reason ``session_lost``: the
    provider no longer knows the session.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        kind: FailureClass = "transient",
        retry_after_s: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.kind = kind
        self.retry_after_s = _bounded(retry_after_s)
        self.usage = usage


def _bounded(seconds: float | None) -> float | None:
    if seconds is None or not isfinite(seconds):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def cancelled(usage: Usage | None = None) -> ProviderFailure:
    """Give the failure of an answer that a cancel ended, however its process took it."""
    return ProviderFailure("it was cancelled", reason="cancelled", kind="invalid", usage=usage)


class Generation(Protocol):
    """One answer on its way."""

    def deltas(self) -> AsyncIterator[str]:
        """Give the pieces of text as they come; ends with the answer. Iterated once.

        Raises ProviderFailure, that of `cancelled` where it was. Cancelling the iteration stops nothing:
        ask ``cancel``.
        """
        ...

    @property
    def answer(self) -> Answer:
        """The whole answer, once the deltas have ended."""
        ...

    async def cancel(self) -> Proof:
        """Stop the work; return when nothing works on it any more, within 3 s.

        May be called at any time, also after the end.
        """
        ...


class CompletionProvider(Protocol):
    """Makes answers. Any number of ``start`` may be under way; what is above ``concurrency`` is not asked."""

    name: str
    models: Sequence[str]
    """Names of the models that it has; the first is the default, and ``ANY_MODEL`` stands for any other."""
    concurrency: int
    """Answers that it makes at once."""
    keeps_sessions: bool
    """It keeps conversations itself: a Job with its ``provider_session`` need not repeat the history."""
    restricts_tools: bool
    """It can be held to ``allowed_tools``; a Job that has them goes to no other."""

    def missing(self) -> str | None:
        """Say why it cannot be used, and what to do; None where it can. Cheap: starts no process."""
        ...

    async def start(self, job: Job) -> Generation:
        """Begin an answer; raise ProviderFailure. Cancelling it leaves nothing at work."""
        ...

    async def close(self) -> None:
        """End its processes."""
        ...
