"""``conversation:search`` and ``conversation:export``: find what was said, and write it into a file."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from ksi_common.errors import NotFound, Unavailable
from ksi_common.events.completion import Role
from ksi_common.events.types import Name
from ksi_common.messages import Message, Request


class Hit(Message):
    """A message that has what was looked for."""

    session_id: str
    request_id: str
    role: Role
    timestamp: str
    excerpt: str
    """What stands around the first place, 200 characters at most."""
    count: int
    """How often it is in there."""


class Found(Message):
    """Hits of the sessions that were active last first, in the order in which they were said."""

    query: str
    results: list[Hit]
    total_conversations: int
    """There are, or were asked for."""
    searched_conversations: int
    """By this request, whole."""
    next_offset: int | None
    """The offset to go on with, where not all were searched; None at the end."""


class Search(Request[Found], event="conversation:search", safe=True, raises=(NotFound,)):
    """Find what was said: a text as it stands, in any case of letters."""

    query: Annotated[str, StringConstraints(min_length=1, max_length=1000)] = Field(
        description="What to look for.", examples=["event log"]
    )
    session_id: Name | None = Field(None, description="In this session only.")
    roles: Annotated[list[Role], Field(min_length=1)] = Field(
        ["user", "assistant"], description="Said by these."
    )
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(
        50, description="Hits at which it stops; a session with more is searched by itself."
    )
    offset: Annotated[int, Field(ge=0)] = Field(0, description="How many sessions to pass over.")


class Exported(Message):
    """A file below ``$KSI_HOME/exports``, its owner's alone."""

    session_id: str
    export_path: str
    filename: str
    format: Literal["markdown", "json"]
    message_count: int
    size_bytes: int


class Export(Request[Exported], event="conversation:export", idempotent=True, raises=(NotFound, Unavailable)):
    """Write a session into a file, in place of one that was written before."""

    session_id: Name = Field(description="Which one.", examples=["no-such-session"])
    format: Literal["markdown", "json"] = Field("markdown", description="For people, or for programs.")
