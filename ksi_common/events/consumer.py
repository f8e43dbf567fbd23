"""``event:*`` of named consumers: what was done with what they were given, and how they fare."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from ksi_common.errors import FailedPrecondition, InvalidArgument, NotFound
from ksi_common.events.types import Name
from ksi_common.messages import Message, Request

Cursors = Annotated[list[str], Field(min_length=1, max_length=10_000)]
ConsumerKind = Literal["consumer", "group", "subscriber"]


class Acknowledged(Message):
    """What became of the cursors given."""

    done: int
    """How many events this finished."""
    ignored: int
    """Those that were finished, or taken back, before."""


class Ack(
    Request[Acknowledged],
    event="event:ack",
    idempotent=True,
    recorded=False,
    raises=(NotFound, InvalidArgument),
):
    """Say that events given to a named consumer are done; answered once that is on disk."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"consumer": "billing", "cursors": ["0f3a9c1e-17"]}]}
    )

    consumer: Name | None = Field(None, description="Its name, as in event:subscribe.", examples=["billing"])
    group: Name | None = Field(None, description="Its group, as in event:subscribe.")
    cursors: Cursors = Field(description="Of the items that are done.", examples=[["0f3a9c1e-17"]])


class Nak(Request[Acknowledged], event="event:nak", recorded=False, raises=(NotFound, InvalidArgument)):
    """Give events back: they are given again later, or become dead letters after too many attempts."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"consumer": "billing", "cursors": ["0f3a9c1e-17"]}]}
    )

    consumer: Name | None = Field(None, description="Its name, as in event:subscribe.", examples=["billing"])
    group: Name | None = Field(None, description="Its group, as in event:subscribe.")
    cursors: Cursors = Field(description="Of the items that were not done.", examples=[["0f3a9c1e-17"]])
    delay_s: Annotated[float, Field(ge=0, le=86_400)] | None = Field(
        None, description="When to give them again; default: 1 s, doubled with each attempt up to 60 s."
    )
    reason: Annotated[str, StringConstraints(max_length=1000)] | None = Field(
        None, description="What went wrong, for whoever reads the dead letter."
    )
    give_up: bool = Field(default=False, description="Never again: make them dead letters at once.")


class Member(Message):
    """A connection that takes part in a consumer."""

    name: str
    in_flight: int
    max_inflight: int


class Consumer(Message):
    """A cursor that the daemon keeps, and how far it is."""

    name: str
    kind: ConsumerKind
    patterns: list[str]
    stream: str | None
    cursor: str
    """What it wants up to here is done."""
    lag: int
    """Events that it wants and that are not done."""
    age_s: float
    """How long ago the oldest of them was told; 0 where there is none."""
    in_flight: int
    """Given to members, and not acknowledged."""
    waiting_again: int
    """To be given again."""
    dead_letters: int
    """Of it, that nobody has redriven or discarded."""
    max_attempts: int
    members: list[Member]
    created: str
    changed: str
    """When something was last done."""


class ConsumerList(Message):
    """Consumers, by kind and name."""

    consumers: list[Consumer]
    count: int


class Consumers(Request[ConsumerList], event="event:consumers", safe=True):
    """List the cursors that the daemon keeps, with lag and age; subscribers of plugins too."""

    kind: ConsumerKind | None = Field(None, description="Of this kind only.")
    name: str | None = Field(None, description="Of this name only.", examples=["billing"])


class ConsumerDeleted(Message):
    """It is gone; its dead letters stay."""

    status: Literal["deleted"] = "deleted"
    kind: ConsumerKind
    name: str


class ConsumerDelete(
    Request[ConsumerDeleted], event="event:consumer_delete", raises=(NotFound, FailedPrecondition)
):
    """Forget a consumer's cursor; streams that follow under its name end."""

    name: str = Field(description="Which one.", examples=["billing"])
    kind: ConsumerKind = Field("consumer", description="Of which kind it is.")
