"""What a completion tells on its way, each thing once, however often its stream began anew."""

from typing import Any, Final, Literal, TypedDict

StepType = Literal[
    "accepted",
    "started",
    "delta",
    "progress",
    "retrying",
    "failover",
    "paused",
    "result",
    "failed",
    "cancelled",
]

FINAL: Final = frozenset(("result", "failed", "cancelled"))


class Usage(TypedDict, total=False):
    """Tokens of one call."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_creation_tokens: int
    cost_usd: float | None


class Failure(TypedDict, total=False):
    """Why there is no answer."""

    reason: str
    message: str
    retryable: bool


class Step(TypedDict, total=False):
    """One item of completion:stream, as it is on the wire."""

    type: StepType
    request_id: str
    session_id: str
    provider: str | None
    model: str | None
    position: int | None
    attempt: int | None
    text: str | None
    delay_s: float | None
    reason: str | None
    message: str | None
    usage: Usage | None
    duration_ms: int | None
    failure: Failure | None
    provider_changed: bool | None
    cached: bool | None
    structured: Any


class Course:
    """Follows one completion over any number of streams, and passes on what is new.

    A stream that begins anew repeats what was accepted and started, and says all the text so far as one
    delta; an attempt with a higher number makes the text before it void.
    """

    def __init__(self) -> None:
        self._accepted = False
        self._attempt = 0
        self._text = ""
        self._anew = False

    def begin_anew(self) -> None:
        """Hear that what comes next is of another stream."""
        self._anew = True

    def take(self, step: Step) -> Step | None:
        """Give what is new of a step; None where all of it was told before."""
        match step["type"]:
            case "accepted":
                known, self._accepted = self._accepted, True
                return None if known else step
            case "started":
                return self._start(step)
            case "delta":
                return self._add(step)
        return step

    def _start(self, step: Step) -> Step | None:
        attempt = step.get("attempt") or 1
        if attempt <= self._attempt:
            return None
        self._attempt = attempt
        self._text = ""
        return step

    def _add(self, step: Step) -> Step | None:
        text = step.get("text") or ""
        if self._anew:
            self._anew = False
            text = text.removeprefix(self._text)
        self._text += text
        return {**step, "text": text} if text else None
