"""``injection:*``: put text into what sessions are asked, within limits of depth, tokens and time."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from ksi_common.errors import FailedPrecondition, NotFound, ResourceExhausted
from ksi_common.events.completion import ModelName, Priority
from ksi_common.events.types import Name
from ksi_common.messages import Message, Notification, Request

Mode = Literal["next", "direct"]
"""It joins the session's next prompt; it is a prompt of its own, at once."""
Position = Literal["before_prompt", "after_prompt"]
Style = Literal["system_reminder", "plain"]
MAX_CONTENT = 64 * 1024
Content = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CONTENT)]

MAX_BATCH = 100


class _How(Message):
    """What injections of all kinds share."""

    mode: Mode = Field("next", description="Joins the next prompt of the session, or is one, at once.")
    position: Position = Field("before_prompt", description="Where it joins that prompt.")
    style: Style = Field("plain", description="As it is, or marked as a reminder of the system.")
    priority: Priority = Field("normal", description="Among injections; of a direct one, in the queue.")
    after_request: Name | None = Field(
        None, description="The completion that led to it: it is one deeper than what was injected into that."
    )
    agent_id: Name | None = Field(None, description="For whom, if it is direct.")
    model: ModelName | None = Field(None, description="Who answers it, if it is direct.")
    provider: Name | None = Field(None, description="Whose model that is.")
    ttl_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = Field(
        86_400.0, description="After which it is dropped, if nothing was asked until then."
    )
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="Yours; kept with it.")


class Injected(Message):
    """An injection that is on disk."""

    injection_id: str
    session_id: str
    mode: Mode
    depth: int
    request_id: str | None
    """Of the completion that it has become; None while it waits."""


class Inject(
    _How, Request[Injected], event="injection:inject", raises=(FailedPrecondition, ResourceExhausted)
):
    """Put text into what a session is asked. Refused where it is too deep, too much or too often."""

    session_id: Name = Field(description="Into which session.", examples=["s1"])
    content: Content = Field(description="What.", examples=["The tests pass now."])


class Refused(Message):
    """An injection of several that is not done."""

    session_id: str
    reason: str
    message: str


class Batched(Message):
    """What became of each, in the order given."""

    injected: list[Injected]
    refused: list[Refused]


class Item(_How):
    """One injection of several."""

    session_id: Name
    content: Content


class Batch(Request[Batched], event="injection:batch"):
    """Put several texts into what sessions are asked; one that is refused keeps no other back."""

    injections: Annotated[list[Item], Field(min_length=1, max_length=MAX_BATCH)] = Field(
        description="Which.", examples=[[{"session_id": "s1", "content": "The tests pass now."}]]
    )


class Execute(_How, Request[Batched], event="injection:execute"):
    """Ask several sessions the same at once."""

    content: Content = Field(description="What.", examples=["Say where you are."])
    target_sessions: Annotated[list[Name], Field(min_length=1, max_length=MAX_BATCH)] = Field(
        description="Which sessions.", examples=[["s1"]]
    )
    mode: Mode = Field("direct", description="At once, or with the next prompt of each.")
    style: Style = Field("system_reminder", description="Marked as a reminder of the system, or as it is.")


class ProcessResult(
    _How,
    Request[Batched],
    event="injection:process_result",
    raises=(FailedPrecondition, NotFound),
):
    """Put the answer of a completion into what other sessions are asked: one deeper than that one."""

    request_id: Name = Field(description="Whose answer.", examples=["no-such-request"])
    target_sessions: Annotated[list[Name], Field(min_length=1, max_length=MAX_BATCH)] = Field(
        description="Which sessions.", examples=[["s1"]]
    )
    guidance: Annotated[str, StringConstraints(max_length=16 * 1024)] = Field(
        "", description="What stands above the answer."
    )


class Waiting(Message):
    """An injection that waits for the next prompt of its session. Times are RFC 3339."""

    injection_id: str
    session_id: str
    mode: Mode
    position: Position
    style: Style
    priority: Priority
    content: str
    depth: int
    queued: str
    expires: str
    metadata: dict[str, JsonValue]


class WaitingList(Message):
    """What waits, in the order in which it will join a prompt; 1,000 at most."""

    injections: list[Waiting]
    count: int


class ListInjections(Request[WaitingList], event="injection:list", safe=True):
    """List what waits."""

    session_id: Name | None = Field(None, description="For this session only.")


class Cleared(Message):
    """How many wait no more."""

    cleared: int


class Clear(Request[Cleared], event="injection:clear", idempotent=True):
    """Drop what waits."""

    session_id: Name | None = Field(None, description="For this session only; default: for all.")


class Standing(Message):
    """How injections stand, and the limits of each session."""

    queued_count: int
    sessions: int
    """With something waiting."""
    blocked_count: int
    """Refused since the start."""
    max_depth: int
    max_tokens: int
    """An hour, estimated."""
    max_per_minute: int


class InjectionStatus(Request[Standing], event="injection:status", safe=True):
    """Tell how many wait, and what is allowed."""


class InjectionQueued(Notification, event="injection:queued"):
    """A text waits for a prompt of its session, or to be one."""

    injection_id: str
    session_id: str
    mode: Mode
    depth: int


class InjectionTaken(Notification, event="injection:taken"):
    """A text has become a part of a completion's prompt."""

    injection_id: str
    session_id: str
    request_id: str
