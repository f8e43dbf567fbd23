"""``completion:status``: where completions are."""

from typing import Literal

from pydantic import Field

from ksi_common.errors import NotFound
from ksi_common.events.completion import Failure, Priority, Proof, State, Usage
from ksi_common.events.completion_parts import Pause, SessionQueue, Unstored
from ksi_common.events.types import Name
from ksi_common.messages import Message, Request
from ksi_common.references import Reference

ProcessState = Literal["pending", "running", "retry", "success", "completed", "failed", "dead"]
"""Of a completion as a process: it waits; is at work; waits for its next try; has an answer that is not on
disk yet; has one that is; ended without; was given up after all its tries, or put aside for a person."""


class Completion(Message):
    """Where a completion is. Times are RFC 3339."""

    request_id: str
    session_id: str
    state: State
    process_state: ProcessState
    position: int | None
    """How many of its session are before it; None once it runs."""
    priority: Priority
    provider: str
    model: str
    attempts: int
    """Calls that were begun, those that a crash ended too."""
    failures: int
    """Calls that the provider failed."""
    next_try: str | None
    """When it is tried again, while it waits for that."""
    last_failure: Failure | None
    """Of the try before."""
    accepted: str
    started: str | None
    ended: str | None
    duration_ms: int | None
    usage: Usage | None
    finish_reason: str | None
    reference: Reference | None
    """Where its line of answer is, once it has one."""
    failure: Failure | None
    proof: Proof | None
    provider_changed: bool | None
    """Another provider or model gave the session's answer before; None where there is no answer yet."""
    agent_id: str | None
    workflow_id: str | None
    originator_agent_id: str | None
    purpose: str | None
    response: str | None = None
    """The answer, where include_response asked for it; one of more than 1 MiB is read by its reference."""


class Overview(Message):
    """The queue as a whole, or one completion where request_id asked for it."""

    active_count: int
    queued_count: int
    retrying_count: int
    """Of the queued, those that wait for their next try."""
    unstored: list[Unstored]
    """Those that have ended, and that the disk does not take; tried again until it does."""
    dead: list[str]
    """Those that a bug kept from ending: dead letters, which a person tries again."""
    paused: list[Pause]
    active_requests: list[str]
    session_queues: list[SessionQueue]
    """Of at most 1,000 sessions."""
    completion: Completion | None = None


class Status(Request[Overview], event="completion:status", safe=True, raises=(NotFound,)):
    """Tell how a completion stands, or the whole queue."""

    request_id: Name | None = Field(None, description="Which one; without it, the queue only.")
    include_response: bool = Field(default=False, description="Read the answer, too.")
