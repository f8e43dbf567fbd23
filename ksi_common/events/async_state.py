"""``async_state:*``: queues by namespace and key: first in, first out, each item for a time."""

from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue

from ksi_common.errors import ResourceExhausted
from ksi_common.events.state import Key
from ksi_common.events.types import Name
from ksi_common.messages import Message, Notification, Request

MAX_ITEMS: Final = 10_000
"""Of one queue."""
MAX_TTL_S: Final = 10 * 366 * 24 * 3600

Ttl = Annotated[float, Field(ge=0, le=MAX_TTL_S)]
Number = Annotated[int, Field(ge=0)]


class OfQueue(Message):
    """Asks of one queue."""

    key: Key = Field(description="Which queue.", examples=["jobs"])
    namespace: Name = Field("global", description="Where the queue is.")


class Pushed(Message):
    """It is in the queue. ``position``: 1 is the next to be popped."""

    status: Literal["pushed"] = "pushed"
    position: int
    namespace: str
    key: str


class Push(OfQueue, Request[Pushed], event="async_state:push", raises=(ResourceExhausted,)):
    """Put a value at the end of a queue, which has 10,000 at most."""

    data: JsonValue = Field(description="Any JSON value; null is one.", examples=[{"n": 1}])
    ttl_seconds: Ttl | None = Field(
        None, description="After so many seconds it is given to nobody and removed; default: never."
    )


class Popped(Message):
    """The first value, which is in the queue no more. ``found`` tells a null from nothing."""

    status: Literal["popped", "empty"]
    data: JsonValue
    found: bool
    namespace: str
    key: str


class Pop(OfQueue, Request[Popped], event="async_state:pop"):
    """Take the first value of a queue: each is given to one caller, once."""


class Queue(Message):
    """Values in order, which stay in the queue."""

    status: Literal["success"] = "success"
    data: list[JsonValue]
    count: int
    """How many this reply has."""
    namespace: str
    key: str
    next: int | None = None
    """Give it as ``after`` to read on; None at the end."""


class GetQueue(OfQueue, Request[Queue], event="async_state:get_queue", safe=True):
    """Read a queue without taking from it."""

    limit: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = Field(
        1000, description="Values at most; a reply has about 1 MiB at most, too."
    )
    after: Number | None = Field(None, description="Beyond this one: the ``next`` of the page before.")


class Length(Message):
    """How many values a queue has."""

    status: Literal["success"] = "success"
    length: int
    namespace: str
    key: str


class QueueLength(OfQueue, Request[Length], event="async_state:queue_length", safe=True):
    """Count the values of a queue."""


class Keys(Message):
    """Queues that have a value, in order of their keys."""

    status: Literal["success"] = "success"
    keys: list[str]
    count: int
    """How many this reply has."""
    namespace: str
    next: str | None = None
    """Give it as ``after`` to read on; None at the end."""


class GetKeys(Request[Keys], event="async_state:get_keys", safe=True):
    """List the queues of a namespace."""

    namespace: Name = Field("global", description="Which one.")
    after: Key | None = Field(None, description="Beyond this key: the ``next`` of the page before.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(1000, description="Keys at most.")


class Deleted(Message):
    """``deleted``: how many values went."""

    status: Literal["deleted"] = "deleted"
    deleted: int
    namespace: str
    key: str


class Delete(OfQueue, Request[Deleted], event="async_state:delete", idempotent=True):
    """Remove a queue with all that is in it."""


class Expiring(Message):
    """``items``: how many values are in the queue, each of which goes at ``expires`` (RFC 3339) or before."""

    status: Literal["expiring"] = "expiring"
    items: int
    expires: str
    namespace: str
    key: str


class ExpireQueue(OfQueue, Request[Expiring], event="async_state:expire_queue"):
    """Let all that is in a queue now expire; what is pushed later stays, and what expires sooner does."""

    ttl_seconds: Ttl = Field(description="After so many seconds; 0: at once.", examples=[60])


class Swept(Message):
    """``removed``: values that had expired. ``more``: there are others."""

    removed: int
    more: bool


class Sweep(Request[Swept], event="async_state:sweep", expose=False, recorded=False, idempotent=True):
    """Remove what has expired; asked by a timer."""


class ItemPushed(Notification, event="async_state:pushed"):
    """A value was put at the end of a queue."""

    namespace: str
    key: str
    number: int
    """Its own, in the order pushed over all queues; never used twice."""
    data: JsonValue
    expires: str | None = None
    """RFC 3339; None: never."""


class ItemPopped(Notification, event="async_state:popped"):
    """A value was taken."""

    namespace: str
    key: str
    number: int


class QueueDeleted(Notification, event="async_state:deleted"):
    """A queue was removed, with all that was in it."""

    namespace: str
    key: str
    deleted: int


class QueueExpiring(Notification, event="async_state:expiring"):
    """Values of a queue go at ``expires``, unless they go before: those up to ``number``."""

    namespace: str
    key: str
    number: int
    expires: str


class ItemsExpired(Notification, event="async_state:expired"):
    """Values of a queue were removed because their time was over."""

    namespace: str
    key: str
    numbers: list[int]
