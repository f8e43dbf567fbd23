"""What became of one question."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ksi_client.chat.steps import FINAL, Failure, Step, Usage

End = Literal["result", "failed", "cancelled"]


@dataclass(slots=True)
class Answer:
    """A completion, as far as it has come. ``end``: None until it has one; ``text``: that of a result."""

    request_id: str | None = None
    session_id: str | None = None
    provider: str | None = None
    model: str | None = None
    end: End | None = None
    text: str | None = None
    usage: Usage | None = None
    duration_ms: int | None = None
    failure: Failure | None = None
    cached: bool = False
    provider_changed: bool = False
    structured: Any = None
    _said: list[str] = field(default_factory=list)

    def take(self, step: Step) -> None:
        """Learn from a step."""
        self.session_id = step.get("session_id") or self.session_id
        self.provider = step.get("provider") or self.provider
        self.model = step.get("model") or self.model
        if step["type"] == "started":
            self._said.clear()
        elif step["type"] == "delta":
            self._said.append(step.get("text") or "")
        if step["type"] in FINAL:
            self.end = cast("End", step["type"])
            self.text = self._text(step) if self.end == "result" else None
            self.cached = bool(step.get("cached"))
            self.provider_changed = bool(step.get("provider_changed"))
            self.structured = step.get("structured")
            self.usage = step.get("usage")
            self.duration_ms = step.get("duration_ms")
            self.failure = step.get("failure")

    def _text(self, step: Step) -> str:
        """Give all of the text; of one that is too long for a step, what the deltas said."""
        text = step.get("text")
        return "".join(self._said) if text is None else text

    def to_json(self, error: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give it as one object; ``error``: what went wrong on the way to it."""
        wrong = error or self.error()
        return {
            "session_id": self.session_id,
            "request_id": self.request_id,
            "result": self.text,
            "provider": self.provider,
            "model": self.model,
            "usage": self.usage,
            "duration_ms": self.duration_ms,
            **({"structured": self.structured} if self.structured is not None else {}),
            "is_error": wrong is not None,
            **({"error": wrong} if wrong else {}),
        }

    def error(self) -> dict[str, Any] | None:
        """Say why there is no answer, in the shape of the wire's errors; None where there is one."""
        if self.end == "cancelled":
            return {
                "message": "the answer was stopped",
                "details": {"reason": "cancelled"},
                "retryable": False,
            }
        if self.end == "failed":
            failure = self.failure or {}
            return {
                "message": failure.get("message", "the model gave no answer"),
                "details": {"reason": failure.get("reason", "unknown")},
                "retryable": failure.get("retryable", False),
            }
        return None
