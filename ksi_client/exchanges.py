"""What a client has asked and what came of it so far. No I/O, no clock."""

import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ksi_client.outgoing import encode
from ksi_common.errors import FailedPrecondition, KSIError, ResourceExhausted, Unavailable
from ksi_common.frames import Answer, Call, End, Failure, Item, Mark, Reply

MAX_BUFFERED_ITEMS: Final = 10_000
MAX_BUFFERED_BYTES: Final = 8 * 1024 * 1024
MAX_LOSSES: Final = 4
"""Connections that a request may lose and be sent again: one that ends the daemon is not asked for ever."""

Entry = Item | Mark
Wake = Callable[[], None]


def _nobody() -> None:
    """Stand in until someone waits."""


class Exchange(ABC):
    """A request under way. ``wake`` is called whenever something came that its owner should look at.

    ``resend``: the request may be sent again on a new connection. ``changes``: it is no question only, so
    that whoever gives it up after it was sent is to know that it may have been done.
    """

    unary = True
    """It counts against the limit of requests in flight."""

    __slots__ = (
        "call",
        "changes",
        "done",
        "error",
        "ident",
        "in_doubt",
        "line",
        "resend",
        "retryable",
        "wake",
    )

    def __init__(
        self, call: Call, *, resend: bool = False, retryable: bool = False, changes: bool = False
    ) -> None:
        self.call = call
        self.changes = changes
        self.in_doubt = False
        self.line = encode(call)
        self.ident: int | None = None
        self.resend = resend
        self.retryable = retryable or (resend and not changes)
        self.wake: Wake = _nobody
        self.done = False
        self.error: KSIError | None = None

    @abstractmethod
    def take(self, answer: Answer, size: int) -> None:
        """Take an answer of about ``size`` bytes."""

    def rewind(self) -> None:  # noqa: B027 -- most have nothing to prepare
        """Prepare to be sent again."""

    def interrupt(self, *, refused: bool) -> bool:  # noqa: ARG002 -- who counts losses asks
        """Hear that the connection is gone; tell whether to send the request again, else fail.

        ``refused``: the daemon said why it hung up, as one that is full does; no request was the cause.
        """
        self.in_doubt = self.changes
        if self.resend:
            return True
        self.finish(self._lost())
        return False

    def give_up(self, error: KSIError) -> None:
        """End it for want of a connection."""
        self.finish(self._lost(error) if self.in_doubt else error)

    def finish(self, error: KSIError | None = None) -> None:
        """End it, once; what comes later changes nothing."""
        if not self.done:
            self.done = True
            self.error = error
            self.wake()

    def _lost(self, cause: KSIError | None = None) -> Unavailable:
        why = f" ({cause.message})" if cause is not None else ""
        lost = Unavailable(
            f"connection lost before {self.call.event!r} was answered; it may or may not have been done{why}",
            reason="connection_lost",
            retryable=self.retryable,
        )
        if self.call.idempotency_key is not None:
            lost.details["idempotency_key"] = self.call.idempotency_key
        lost.__cause__ = cause
        return lost

    def fail(self, failure: Failure) -> None:
        """End it with the error that the daemon sent, which names its correlation id."""
        if failure.correlation_id:
            failure.error.add_note(f"correlation id {failure.correlation_id}")
        self.finish(failure.error)


class Question(Exchange):
    """A request with one reply."""

    __slots__ = ("_losses", "reply")

    def __init__(
        self, call: Call, *, resend: bool = False, retryable: bool = False, changes: bool = False
    ) -> None:
        super().__init__(call, resend=resend, retryable=retryable, changes=changes)
        self.reply: Reply | None = None
        self._losses = 0

    def interrupt(self, *, refused: bool) -> bool:
        """Hear that the connection is gone; after the fourth that was none of a refusal it is given up."""
        self._losses += not refused
        self.resend = self.resend and self._losses <= MAX_LOSSES
        return super().interrupt(refused=refused)

    def take(self, answer: Answer, size: int) -> None:  # noqa: ARG002  (a reply is not buffered)
        """Take the reply or the error; a stream's item ends it."""
        if isinstance(answer, Reply):
            self.reply = answer
            self.finish()
        elif isinstance(answer, Failure):
            self.fail(answer)
        else:
            self.finish(
                FailedPrecondition(
                    f"{self.call.event!r} answers with a stream", reason="is_stream", hint="use stream()"
                )
            )

    def result(self) -> dict[str, Any]:
        """Give the reply's data, or raise the error."""
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        for text in self.reply.warnings:
            warnings.warn(text, FutureWarning, stacklevel=2)
        return self.reply.data


class Feed(Exchange):
    """A stream whose items wait here, at most 10,000 or 8 MiB, until they are popped.

    One that is full gets ResourceExhausted after what waits; a ``Subscription`` pauses instead.
    """

    unary = False

    __slots__ = ("_bytes", "_waiting", "full")

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._waiting: deque[tuple[Entry, int]] = deque()
        self._bytes = 0
        self.full = False

    def take(self, answer: Answer, size: int) -> None:
        """Keep an item or a mark; a plain reply counts as the only item."""
        if isinstance(answer, Item | Mark):
            self._keep(answer, size)
        elif isinstance(answer, Reply):
            self._keep(Item(answer.id, answer.data), size)
            self.finish()
        elif isinstance(answer, End):
            self.finish()
        else:
            self.fail(answer)

    def pop(self) -> Entry | None:
        """Give the oldest entry that waits, if any."""
        if not self._waiting:
            return None
        entry, size = self._waiting.popleft()
        self._bytes -= size
        return entry

    def overflow(self) -> None:
        """End it: the buffer is full, and what the daemon goes on sending cannot be had again."""
        self.finish(
            ResourceExhausted(
                f"stream {self.call.event!r} not read: {len(self._waiting)} items ({self._bytes} bytes) wait",
                reason="slow_consumer",
                retryable=False,
            )
        )

    def _keep(self, entry: Entry, size: int) -> None:
        self._waiting.append((entry, size))
        self._bytes += size
        self.full = len(self._waiting) >= MAX_BUFFERED_ITEMS or self._bytes >= MAX_BUFFERED_BYTES
        self.wake()


class Subscription(Feed):
    """A feed that goes on after its last cursor: on a new connection, and after it was full.

    ``asked``: when it was, in RFC 3339. Before a cursor came, the next connection is told "now" by it.
    """

    __slots__ = ("_asked", "cursor", "paused")

    def __init__(self, call: Call, *, asked: str) -> None:
        super().__init__(call)
        self.resend = True
        self._asked = asked
        self.cursor: str | None = None
        """That of the last entry that came, heartbeats included."""
        self.paused = False

    @property
    def has_room(self) -> bool:
        """Tell whether half the buffer is free again."""
        return len(self._waiting) <= MAX_BUFFERED_ITEMS // 2 and self._bytes <= MAX_BUFFERED_BYTES // 2

    def overflow(self) -> None:
        """Pause: the log keeps what comes meanwhile."""
        self.paused = True

    def rewind(self) -> None:
        """Make the request begin after what came already."""
        if self.cursor is not None:
            _begin_at(self, {"cursor": self.cursor})
        elif self.call.data["start"] == "now":
            _begin_at(self, {"time": self._asked})

    def _keep(self, entry: Entry, size: int) -> None:
        if entry.cursor is not None:
            self.cursor = entry.cursor
        if self._waiting and _is_heartbeat(entry) and _is_heartbeat(self._waiting[-1][0]):
            self._bytes -= self._waiting.pop()[1]
        super()._keep(entry, size)


class Consumption(Feed):
    """A feed whose cursor the daemon keeps: on a new connection it goes on with what is not acknowledged.

    What waits here is bounded by what may be given and not acknowledged. ``asked``: as of a subscription.
    """

    __slots__ = ("_asked",)

    def __init__(self, call: Call, *, asked: str) -> None:
        super().__init__(call)
        self.resend = True
        self._asked = asked

    def rewind(self) -> None:
        """Forget what waits: the daemon has taken it back, and gives it again."""
        self._waiting.clear()
        self._bytes = 0
        if self.call.data["start"] == "now":
            _begin_at(self, {"time": self._asked})

    def _keep(self, entry: Entry, size: int) -> None:
        super()._keep(entry, size)
        self.full = False


def _begin_at(feed: Feed, start: dict[str, str]) -> None:
    feed.call.data = {**feed.call.data, "start": start}
    feed.line = encode(feed.call)


def _is_heartbeat(entry: Entry) -> bool:
    return isinstance(entry, Mark) and entry.kind == "heartbeat"
