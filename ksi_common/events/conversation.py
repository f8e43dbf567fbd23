"""``conversation:*``: what was said in the sessions."""

from typing import Annotated, Literal

from pydantic import Field

from ksi_common.errors import AlreadyExists, NotFound
from ksi_common.events.types import Name, Time
from ksi_common.messages import Message, Notification, Request


class Conversation(Message):
    """One session. Times are RFC 3339."""

    session_id: str
    message_count: int
    """Prompts and answers."""
    first_timestamp: str
    last_timestamp: str
    size_bytes: int
    """Of its file of answers."""
    path: str
    """Of that file, below ``$KSI_HOME``."""
    forked_from: str | None = None
    """The session that it goes on from."""


class Listed(Message):
    """A page of conversations."""

    conversations: list[Conversation]
    total: int
    offset: int
    limit: int


class List(Request[Listed], event="conversation:list", safe=True):
    """List conversations, the latest first."""

    limit: Annotated[int, Field(ge=1, le=1000)] = Field(100, description="Conversations at most.")
    offset: Annotated[int, Field(ge=0)] = Field(0, description="How many to pass over.")
    sort_by: Literal["first_timestamp", "last_timestamp", "message_count", "session_id"] = Field(
        "last_timestamp", description="What to sort by."
    )
    reverse: bool = Field(default=True, description="The largest or latest first.")
    start_date: Time | None = Field(None, description="Last active at or after this time.")
    end_date: Time | None = Field(None, description="Last active before this time.")


class Said(Message):
    """One message. What an answer has besides is set for the assistant's."""

    role: Literal["system", "user", "assistant"]
    content: str
    """Empty where there is no answer; ``outcome`` or ``error`` says why."""
    timestamp: str
    request_id: str
    outcome: Literal["result", "failed", "cancelled"] | None = None
    provider: str | None = None
    model: str | None = None
    error: str | None = None
    """Why the content cannot be had: it failed, or its bytes on disk are damaged."""


class Messages(Message):
    """A page of one conversation, in the order said."""

    session_id: str
    messages: list[Said]
    total: int
    offset: int
    limit: int


class Get(Request[Messages], event="conversation:get", safe=True, raises=(NotFound,)):
    """Read a conversation: prompts and answers."""

    session_id: Name = Field(description="Which one.", examples=["no-such-session"])
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(1000, description="Messages at most.")
    offset: Annotated[int, Field(ge=0)] = Field(0, description="How many to pass over.")


class Forked(Message):
    """A session that goes on from another. ``messages``: how many it has of it."""

    session_id: str
    forked_from: str
    request_id: str
    """Whose answer is the last that it has."""
    messages: int


class Fork(Request[Forked], event="conversation:fork", raises=(AlreadyExists, NotFound)):
    """Begin a session that goes on from what was said in another, which stays as it is.

    The provider is told all of it with the first prompt, and gives the new session an id of its own.
    """

    session_id: Name = Field(description="Which one to go on from.", examples=["no-such-session"])
    request_id: Name | None = Field(
        None, description="The request whose answer is to be the last one; default: the newest answer."
    )
    new_session_id: Name | None = Field(None, description="Its name; default: a new one.")


class ConversationForked(Notification, event="conversation:forked"):
    """A session goes on from another."""

    session_id: str
    forked_from: str
    request_id: str
