"""``completion:*``: ask a model; what was accepted is answered, failed or cancelled, exactly once."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, model_validator

from ksi_common.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted
from ksi_common.events.types import Name
from ksi_common.messages import Message, Notification, Request, Stream, renamed_from
from ksi_common.references import Reference

MAX_TIMEOUT_S = 1800
DEFAULT_TIMEOUT_S = 300

Text = Annotated[str, StringConstraints(max_length=1024 * 1024)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]

ToolName = Annotated[str, StringConstraints(pattern=r"^[^\s]{1,256}$")]

Tokens = Annotated[int, Field(ge=0, lt=2**53)]
"""What a provider counts, and a database and JSON can hold."""

Role = Literal["system", "user", "assistant"]

State = Literal["queued", "running", "completed", "failed", "cancelled"]
"""Of a completion. The last three are final."""

OPEN: tuple[State, ...] = ("queued", "running")

Priority = Literal["critical", "high", "normal", "low", "background"]
"""Between sessions. Within one it is first come, first served."""


class ChatMessage(Message):
    """One thing said in a conversation."""

    role: Role
    content: Text


class Usage(Message):
    """Tokens of one call; ``cached_tokens`` are those of the prompt that were not computed again.

    ``cache_creation_tokens`` are those that the provider keeps for the next call. ``cost_usd`` is None where
    nobody knows a price.
    """

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    cache_creation_tokens: Tokens = 0
    cost_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Proof(Message):
    """Why nothing works on a cancelled completion any more."""

    how: Literal["not_started", "between_attempts", "confirmed", "killed", "recovered"]
    """It had not begun; it waited for its next try; the worker said that it stopped; the worker is gone;
    found at a start."""
    elapsed_s: float
    """From the wish to the proof."""
    pids_gone: list[int] = Field(default_factory=list)
    """Processes that ended for it."""


class Failure(Message):
    """Why a completion has no answer. ``reason``: the machine's word."""

    reason: str
    message: str
    retryable: bool = False
    """Asking again may help."""


class Asked(Message):
    """What one asks of a model: the fields that completion:async and completion:stream share."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Say hi"}]})

    prompt: Text | None = Field(None, description="What to ask.", examples=["Say hi"])
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="A whole conversation instead of a prompt; its last message is the user's."
    )
    prompt_file: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = Field(
        None, description="A file that holds the prompt, below a folder of prompt_roots; for large ones."
    )
    model: ModelName | None = Field(None, description="Which model; default: the provider's first.")
    provider: Name | None = Field(None, description="Who runs it; default: the first that can.")
    session_id: Name | None = Field(None, description="Go on with this session; default: a new one.")
    request_id: Name | None = Field(
        None, description="Your id of it: the same one again is the same completion, not another."
    )
    system: Text | None = Field(None, description="What the model is told before the conversation.")
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        None, description="Of the answer at most; default: the provider's."
    )
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] = Field(
        DEFAULT_TIMEOUT_S, description="Seconds that the model may take, once it begins."
    )
    priority: Priority = Field("normal", description="Before, or after, what waits in other sessions.")
    tools: Annotated[list[dict[str, JsonValue]], Field(max_length=256)] = Field(
        default_factory=list, description="Tools that the model may call, as the OpenAI API describes them."
    )
    allowed_tools: Annotated[list[ToolName], Field(max_length=256)] | None = Field(
        None,
        description="Names of the only tools that may be used, [] for none; a provider that cannot be held "
        "to it refuses. Default: as the provider is set up.",
    )
    response_schema: dict[str, JsonValue] | None = Field(
        None, description="A JSON schema that the answer is to fit."
    )
    agent_id: Name | None = renamed_from("client_id", "agent_id", None, description="For whom.")
    workflow_id: Name | None = Field(None, description="The workflow that it is a part of.")
    originator_agent_id: Name | None = Field(None, description="Who wanted it first.")
    purpose: Annotated[str, StringConstraints(max_length=256)] | None = renamed_from(
        "task", "purpose", None, description="What for; kept with it."
    )

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        given = [name for name in ("prompt", "messages", "prompt_file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give one of prompt, messages and prompt_file" + (f", not {given}" * bool(given))
            )
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("the prompt is empty")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return self


class Accepted(Message):
    """It is on disk, and will end in exactly one result, failure or cancellation."""

    request_id: str
    session_id: str
    status: State
    position: int
    """How many completions of its session are before it."""
    provider: str
    model: str


_RAISES = (AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted)


class Async(Asked, Request[Accepted], event="completion:async", raises=_RAISES):
    """Ask a model for an answer; answered at once, the answer comes as completion:result."""


class Step(Message):
    """One step of a completion. Which fields are set depends on ``type``.

    ``accepted``: request_id, session_id, provider, model, position. ``started``: attempt; what came before
    of an earlier attempt is void. ``delta``: text. ``progress``: elapsed_s. ``retrying``: attempt, reason,
    message, delay_s. ``failover``: provider and model that are asked instead of the one before them, reason,
    message. ``paused``: it waits for more of a budget, or until it is resumed; reason, message. At last one
    of ``result``: text, usage, finish_reason, duration_ms, reference, provider_changed, cached, structured;
    ``failed``: failure; ``cancelled``: proof.

    The text of a result is all of it; None where that is more than 1 MiB, for the deltas had it, and
    ``blob:read`` of the reference gives its line.
    """

    type: Literal[
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
    request_id: str
    session_id: str
    provider: str | None = None
    model: str | None = None
    position: int | None = None
    attempt: int | None = None
    text: str | None = None
    elapsed_s: float | None = None
    delay_s: float | None = None
    reason: str | None = None
    message: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    duration_ms: int | None = None
    reference: Reference | None = None
    failure: Failure | None = None
    proof: Proof | None = None
    provider_changed: bool | None = None
    cached: bool | None = None
    structured: JsonValue = None


class StreamCompletion(Asked, Stream[Step], event="completion:stream", raises=_RAISES):
    """Ask a model for an answer and get it as it is made.

    Closing the stream stops nothing: ask completion:cancel. Asked again with the same request_id, it goes on
    with the completion that there is: what was said so far comes as one delta.
    """


class CancelReply(Message):
    """``cancelled``: it has ended by this or an earlier wish, ``proof`` says how. ``too_late``: otherwise."""

    status: Literal["cancelled", "too_late"]
    request_id: str
    state: State
    proof: Proof | None = None


class Cancel(Request[CancelReply], event="completion:cancel", idempotent=True, raises=(NotFound,)):
    """Stop a completion, wherever it is; answered when it has stopped."""

    request_id: Name = Field(description="Which one.", examples=["no-such-request"])


class PromptMessage(Message):
    """A message of a prompt: its content, or the blob that holds it where it is long."""

    role: Role
    content: str | None = None
    reference: Reference | None = None


class _OfCompletion(Notification):
    """What every word of a completion names."""

    request_id: str
    session_id: str


class _OfAttempt(_OfCompletion):
    """``attempt`` counts from 1, over restarts, too; 0 where none began."""

    attempt: int


class _OfProvider(_OfAttempt):
    """Who works, or worked, on it."""

    provider: str
    model: str


class _Ended(_OfProvider):
    """The last word of a completion: its line in the session's file is on disk; ``reference`` names it."""

    reference: Reference
    agent_id: str | None = None


class CompletionAccepted(_OfCompletion, event="completion:accepted"):
    """A completion is on disk and waits for its turn."""

    provider: str
    model: str
    messages: list[PromptMessage]
    max_tokens: int | None = None
    timeout_s: float
    priority: Priority = "normal"
    agent_id: str | None = None
    workflow_id: str | None = None
    originator_agent_id: str | None = None
    purpose: str | None = None


class CompletionStarted(_OfProvider, event="completion:started"):
    """A provider works on it."""


class CompletionDelta(_OfAttempt, event="completion:delta", ephemeral=True):
    """A piece of an answer that is being made; ``index`` counts the pieces of the attempt from 0."""

    index: int
    text: str


class CompletionProgress(_OfAttempt, event="completion:progress", ephemeral=True):
    """It is still at work, though nothing came."""

    elapsed_s: float


class CompletionRetrying(_OfAttempt, event="completion:retrying"):
    """An attempt failed; the next follows after ``delay_s``."""

    delay_s: float
    reason: str
    message: str
    kind: str | None = None
    """The class of the failure; None where it was none of the provider's."""
    failures: int = 0
    """Calls that the provider failed, this one too."""


class CompletionResult(_Ended, event="completion:result"):
    """There is an answer."""

    duration_ms: int
    finish_reason: str
    usage: Usage
    provider_changed: bool = False
    """Another provider or model gave the session's answer before."""
    cached: bool = False
    """The same request was answered before: this is that answer, and costs nothing."""
    structured: JsonValue = None
    """What response_schema asked for; None also where it is larger than an event may be: the line has it."""


class CompletionFailed(_Ended, event="completion:failed", formerly=("completion:error",)):
    """There will be no answer."""

    failure: Failure


class CompletionCancelled(_Ended, event="completion:cancelled"):
    """It was stopped by wish, and nothing works on it any more."""

    proof: Proof
