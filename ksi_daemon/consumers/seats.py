"""What a consumer knows of its members, and what they say of events."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ksi_common.envelope import StoredEvent
from ksi_common.errors import KSIError, Unavailable
from ksi_common.records import record
from ksi_daemon.consumers.ledger import Entry, Member
from ksi_daemon.hub import item_tail
from ksi_daemon.subscriptions import Sink


@record
class Refusal:
    """Why events are given back."""

    delay_s: float | None = None
    """None: as long as the attempts so far suggest."""
    reason: str = "nak"
    message: str = "given back by its consumer"
    give_up: bool = False


@dataclass(slots=True, eq=False)
class Report:
    """What was said of events, until it is on disk: ``settled`` gives how many it was about."""

    seqs: Sequence[int]
    settled: "asyncio.Future[int]"
    refusal: Refusal | None = None
    """None: they are done."""

    def answer(self, number: int) -> None:
        """Say that it is on disk."""
        if not self.settled.done():
            self.settled.set_result(number)


@dataclass(slots=True, eq=False)
class Seat:
    """A member, and where its events go."""

    member: Member
    sink: Sink
    automatic: bool
    """What it was given counts as done."""
    ack_wait_s: float | None = None
    """How long it may have events without a word of any."""
    heard_s: float = 0.0
    """When it said something of one, or was given one while it had none; monotonic: the clock may be set."""
    stalled: bool = False
    """Its sink is full."""
    error: KSIError | None = None
    """Why it is to follow no more."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with either."""
    told_caught_up: bool = False

    def has_room(self) -> bool:
        """Tell whether it may be given one more event."""
        return self.member.has_room and not self.stalled

    def overdue_in_s(self, now_s: float) -> float | None:
        """Give the seconds until what it has is to be taken back; None: never."""
        if self.ack_wait_s is None or not self.member.has:
            return None
        return self.heard_s + self.ack_wait_s - now_s

    def hear(self, now_s: float) -> None:
        """Take note of a sign of life."""
        self.heard_s = now_s
        self.member.silent = False

    def stall(self) -> None:
        """Give it no more until its sink is drained."""
        self.stalled = True
        self.wake.set()

    def end(self, error: KSIError) -> None:
        """Have it follow no more."""
        self.error = self.error or error
        self.wake.set()


def refuse(reports: Sequence[Report], error: KSIError) -> None:
    """Say of those that have no answer that they are not on disk."""
    for report in reports:
        if not report.settled.done():
            report.settled.set_exception(error)
            report.settled.exception()  # whoever asked may be gone


def rendered(entry: Entry, cursor: str) -> StoredEvent:
    """Make an item that carries the attempt; what all subscribers share of the text is not rendered anew."""
    event = entry.event
    if event.line is None:
        event.line = item_tail(event, cursor)
    line = event.line.removesuffix(b"}}\n") + b',"attempt":%d}}\n' % entry.attempt
    return replace(event, line=line)


def taken_over(name: str) -> KSIError:
    """Give the error of a member whose place another has taken."""
    return Unavailable(
        f"another connection follows as {name!r} now",
        reason="taken_over",
        hint="give each member of a group a name of its own",
        retryable=False,
    )
