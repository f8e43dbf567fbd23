"""What a description of the queue of completions is made of."""

from typing import Literal

from ksi_common.messages import Message


class SessionQueue(Message):
    """What waits in one session."""

    session_id: str
    queued: int
    running: str | None
    """The request that runs."""


class Pause(Message):
    """What begins nothing: the whole ``queue``, or the session or provider of that name."""

    scope: Literal["queue", "session", "provider"]
    name: str
    """Empty for the queue."""
    reason: str
    """Why: ``asked``, or the word of what paused it."""
    since: str


class Unstored(Message):
    """A completion whose end cannot be put on disk."""

    request_id: str
    session_id: str
    error: str
    tries: int
    since: str
