"""``completion:*`` of the queue: hold it, look at it, empty it."""

from typing import Self

from pydantic import Field, model_validator

from ksi_common.errors import NotFound
from ksi_common.events.completion_parts import Pause
from ksi_common.events.types import Name
from ksi_common.messages import Message, Notification, Request


class _Scope(Message):
    """The whole queue, or one session, or one provider."""

    session_id: Name | None = Field(None, description="This session only.")
    provider: Name | None = Field(None, description="This provider only.")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.session_id is not None and self.provider is not None:
            raise ValueError("give session_id, or provider, or neither for the whole queue; not both")
        return self


class Paused(Message):
    """``changed``: by this request. ``paused``: all that is paused now."""

    changed: bool
    paused: list[Pause]


class PauseQueue(_Scope, Request[Paused], event="completion:pause", idempotent=True, raises=(NotFound,)):
    """Begin nothing more; what is at work goes on, and what is asked is accepted. Outlives a restart."""


class ResumeQueue(_Scope, Request[Paused], event="completion:resume", idempotent=True):
    """Begin again, whatever paused it. A session stays paused where the whole queue is."""


class Cleared(Message):
    """``cancelled``: the requests that were queued. ``running``: what is at work, and stays so."""

    session_id: str
    cancelled: list[str]
    running: str | None


class ClearSession(Request[Cleared], event="completion:clear_session", idempotent=True, raises=(NotFound,)):
    """End what is queued in a session as cancelled; answered when it has ended."""

    session_id: Name = Field(description="Which one.", examples=["no-such-session"])


class SessionState(Message):
    """How a session stands."""

    session_id: str
    active: bool
    """Something of it is at work."""
    running: str | None
    queued: int
    has_queue: bool
    requests: list[str]
    """The first 1,000 that wait, in order."""
    paused: list[Pause]
    provider: str | None
    """Who gave its last answer."""
    model: str | None
    provider_session: str | None
    """That provider's own id of it, from its last answer."""
    forked_from: str | None


class SessionStatus(Request[SessionState], event="completion:session_status", safe=True, raises=(NotFound,)):
    """Tell what runs and waits in a session, and who answers it."""

    session_id: Name = Field(description="Which one.", examples=["no-such-session"])


class Retrying(Message):
    """A completion that waits for its next try. Times are RFC 3339."""

    request_id: str
    session_id: str
    provider: str
    model: str
    failures: int
    reason: str
    message: str
    next_try: str
    delay_s: float
    """From now; 0 where only its turn is missing."""


class Retries(Message):
    """What waits for its next try, the soonest first; ``count``: all of it."""

    retrying: list[Retrying]
    count: int
    attempts: int
    """Tries that a completion has, as set."""
    by_reason: dict[str, int]


class RetryStatus(Request[Retries], event="completion:retry_status", safe=True):
    """Tell what waits for its next try, and why."""

    session_id: Name | None = Field(None, description="Of this session only.")


class CompletionPaused(Notification, event="completion:paused"):
    """The queue, a session or a provider begins nothing more."""

    scope: str
    name: str
    reason: str


class CompletionResumed(Notification, event="completion:resumed"):
    """It begins again."""

    scope: str
    name: str
    reason: str
