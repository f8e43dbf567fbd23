"""``state:*``: values by namespace and key, for users."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from ksi_common.events.types import Name
from ksi_common.messages import Message, Notification, Request

Key = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class Found(Message):
    """What a key holds. ``found`` tells a stored null from nothing."""

    value: JsonValue
    found: bool
    namespace: str
    key: str


class Get(Request[Found], event="state:get", safe=True):
    """Read one value."""

    key: Key = Field(description="What to read.", examples=["color"])
    namespace: Name = Field("global", description="Where the key is.")


class Stored(Message):
    """The value is stored."""

    status: Literal["set"] = "set"
    namespace: str
    key: str


class Set(Request[Stored], event="state:set", idempotent=True):
    """Store one value, replacing what was there."""

    key: Key = Field(description="What to write.", examples=["color"])
    value: JsonValue = Field(description="Any JSON value; null is one.", examples=["green"])
    namespace: Name = Field("global", description="Where the key is.")
    metadata: dict[str, JsonValue] | None = Field(None, description="Kept beside the value.")


class Deleted(Message):
    """``status`` tells whether there was something to delete."""

    status: Literal["deleted", "not_found"]
    namespace: str
    key: str


class Delete(Request[Deleted], event="state:delete", idempotent=True):
    """Remove one value."""

    key: Key = Field(description="What to remove.", examples=["color"])
    namespace: Name = Field("global", description="Where the key is.")


class Listed(Message):
    """Keys in order. ``next``: give it as ``after`` to read on; None at the end."""

    keys: list[str]
    count: int
    """How many keys this reply has."""
    namespace: str
    pattern: str | None
    next: str | None = None


class List(Request[Listed], event="state:list", safe=True):
    """List keys of a namespace."""

    namespace: Name = Field("global", description="Which one.")
    pattern: Annotated[str, StringConstraints(max_length=512)] | None = Field(
        None, description="Only keys that match; ``*`` and ``?`` as in a shell.", examples=["user.*"]
    )
    after: str | None = Field(None, description="Only keys after this one: the ``next`` of the page before.")
    limit: Annotated[int, Field(ge=1, le=10_000)] = Field(1000, description="Keys at most.")


class Cleared(Message):
    """How much went."""

    status: Literal["cleared"] = "cleared"
    namespace: str
    keys_deleted: int


class Clear(Request[Cleared], event="state:clear", idempotent=True):
    """Remove every value of a namespace."""

    namespace: Name = Field(description="Which one.", examples=["scratch"])


class SessionFound(Message):
    """What is kept of a session. ``found`` tells a null from nothing."""

    session_id: str
    output: JsonValue
    found: bool


class GetSession(Request[SessionFound], event="state:session:get", safe=True):
    """Read the last output that is kept of a session."""

    session_id: Name = Field(description="Which one.", examples=["no-such-session"])


class SessionUpdated(Message):
    """It is stored."""

    status: Literal["updated"] = "updated"
    session_id: str


class UpdateSession(Request[SessionUpdated], event="state:session:update", idempotent=True, recorded=False):
    """Keep an output of a session, in place of the one before: a value of the namespace ``session``."""

    session_id: Name = Field(description="Of which one.", examples=["demo"])
    output: JsonValue = Field(description="Any JSON value.", examples=["Paris"])


class Changed(Notification, event="state:changed"):
    """A value was stored."""

    namespace: str
    key: str
    value: JsonValue
    metadata: dict[str, JsonValue] | None = None


class Removed(Notification, event="state:removed"):
    """A value was removed."""

    namespace: str
    key: str


class NamespaceCleared(Notification, event="state:cleared"):
    """Every value of a namespace was removed."""

    namespace: str
    keys_deleted: int
