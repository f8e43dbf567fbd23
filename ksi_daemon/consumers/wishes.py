"""What those who follow under a name ask for."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ksi_common.errors import InvalidArgument
from ksi_common.records import record
from ksi_daemon.consumers.rows import ConsumerRow

SUBSCRIBER: Final = "subscriber"
"""The kind of the cursors that plugins' durable subscribers have."""
KINDS: Final = ("consumer", "group", SUBSCRIBER)

Key = tuple[str, str]
"""Kind and name."""


@record(kw_only=True)
class Wish:
    """What a member wants. ``start``: as of a subscription, for the first time only."""

    patterns: Sequence[str]
    stream: str | None = None
    start: str | Mapping[str, Any] = "now"
    consumer: str | None = None
    group: str | None = None
    max_inflight: int | None = None
    max_attempts: int | None = None
    ack_wait_s: float | None = None
    automatic: bool = False

    @property
    def key(self) -> Key:
        """Give the cursor that is meant."""
        return key_of(self.consumer, self.group)


def key_of(consumer: str | None, group: str | None) -> Key:
    """Give the cursor that is meant by what a client names."""
    if group is not None:
        return "group", group
    if consumer is None:
        raise InvalidArgument("name the consumer or the group", reason="no_consumer")
    return "consumer", consumer


def key_of_subscriber(plugin: str, function: str) -> str:
    """Name the cursor of a durable subscriber."""
    return f"{plugin}.{function}"


def fits(row: ConsumerRow, wish: Wish) -> bool:
    """Tell whether a consumer is as wished already."""
    return (
        set(row.patterns) == set(wish.patterns)
        and row.stream == wish.stream
        and wish.max_attempts in (None, row.max_attempts)
    )
