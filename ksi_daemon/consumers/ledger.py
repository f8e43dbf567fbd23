"""What a consumer has before it: who may be given what, and how far everything is done. No I/O, no clock.

An event that was read is ready, held back by its key, delayed, or given to a member, until it is settled.
Members share events by key. In a group the next event of a key waits until the one before is settled; a
consumer of one member gets events in the order of the log, and a key waits only for what failed.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Final, Literal

from ksi_common.envelope import StoredEvent

MAX_HELD: Final = 10_000
"""Events in memory, those given included; what comes after them stays in the log."""
MAX_HELD_BYTES: Final = 8 * 1024 * 1024
MAX_BEYOND: Final = 100_000
"""Events done beyond the first that is not."""
LOSSES_TOGETHER: Final = 2
"""How often an event may be lost with its member before it is given alone, which shows whether it is why."""


@dataclass(slots=True)
class Failures:
    """What is known of an event's earlier attempts."""

    attempts: int = 0
    """That failed."""
    losses: int = 0
    """How often its member went while it had it."""
    due_us: int = 0
    first_us: int | None = None
    letter: int | None = None
    """The dead letter that is given again."""


@dataclass(slots=True, eq=False)
class Entry:
    """An event that is not settled."""

    event: StoredEvent
    seq: int
    failures: Failures
    saved: bool = False
    """The database has a row of it."""
    place: Literal["ready", "held", "delayed", "given", "dying"] = "ready"
    member: "Member | None" = None

    @property
    def key(self) -> str:
        """What events are shared and ordered by."""
        return self.event.stream or self.event.correlation_id

    @property
    def attempt(self) -> int:
        """The how-manieth time it is given, when it is next."""
        return self.failures.attempts + self.failures.losses + 1


@dataclass(slots=True, eq=False)
class Member:
    """Somebody who takes events."""

    name: str
    max_inflight: int
    has: dict[int, Entry] = field(default_factory=dict)
    alone: bool = False
    """What it has is given alone."""
    silent: bool = False
    """What it had was taken back, and nothing was heard of it since: others come first."""

    @property
    def has_room(self) -> bool:
        """Tell whether it may have one more."""
        return len(self.has) < self.max_inflight and not self.alone


Room = Callable[[Member], bool]


class Ledger:
    """The events of one consumer from its position on."""

    def __init__(
        self,
        position: int,
        *,
        shared: bool,
        done: Iterable[int] = (),
        failures: Mapping[int, Failures] | None = None,
    ) -> None:
        self.position = position
        """What is wanted up to here is settled."""
        self.read_to = position
        self.entries: dict[int, Entry] = {}
        self.members: list[Member] = []
        self._shared = shared
        self._known = dict(failures or {})
        """Of events that are still to be read."""
        self._beyond = set(done)
        self._beyond_order = sorted(self._beyond)
        self._order: list[int] = []
        self._first = 0
        self._ready: list[int] = []
        self._held: dict[str, list[int]] = {}
        self._delayed: list[tuple[int, int]] = []
        self._holders: dict[str, set[int]] = {}
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Tell whether no more is to be read."""
        return self._is_beyond(1)

    @property
    def half_full(self) -> bool:
        """Tell whether there is more than half of what there may be."""
        return self._is_beyond(2)

    @property
    def in_flight(self) -> int:
        """How many events members have."""
        return sum(len(member.has) for member in self.members)

    @property
    def has_ready(self) -> bool:
        """Tell whether something could be given, if there were room."""
        return bool(self._ready)

    def read(self, events: Iterable[StoredEvent], head: int) -> None:
        """Take events of the log, in order; everything up to ``head`` has been read then."""
        for event in events:
            if event.seq is None or event.seq in self._beyond or event.seq <= self.read_to:
                continue  # passing by, done, or read before
            known = self._known.pop(event.seq, None)
            entry = Entry(event, event.seq, known or Failures(), saved=known is not None)
            self._order.append(entry.seq)
            self._take_in(entry)
        self.read_to = max(self.read_to, head)

    def restore(self, event: StoredEvent, failures: Failures) -> None:
        """Take a dead letter that is to be given again; the position does not wait for it.

        Once: who opens a consumer reads what is redriven at that moment, and hears of it, too.
        """
        assert event.seq is not None
        if event.seq in self.entries:
            return
        self._beyond_add(event.seq)  # what is read of it in the log is not to be given besides
        self._take_in(Entry(event, event.seq, failures, saved=True))

    def skip_to(self, position: int) -> None:
        """Take note that nothing up to ``position`` can be had any more."""
        self.read_to = max(self.read_to, position)

    def join(self, member: Member) -> None:
        """Take a member in."""
        self.members.append(member)

    def leave(self, member: Member, *, lost: bool) -> Sequence[Entry]:
        """Let a member go, and take back what it has; ``lost``: count that. Gives what has changed."""
        self.members.remove(member)
        return self.take_back(member, lost=lost)

    def take_back(self, member: Member, *, lost: bool) -> Sequence[Entry]:
        """Take back what a member has; as for ``leave``."""
        entries = sorted(member.has.values(), key=lambda entry: entry.seq)
        for entry in entries:
            if lost:
                # Lost alone, it is to blame; lost with others it may be as innocent as they are.
                entry.failures.attempts += member.alone
                entry.failures.losses += not member.alone
            self._put_back(entry)
        member.has.clear()
        member.alone = False
        return entries if lost else ()

    def give(self, now_us: int, has_room: Room) -> Iterator[tuple[Member, Entry]]:
        """Give what may be given, to members that ``has_room``, in the order of the log."""
        self._wake_delayed(now_us)
        left: list[int] = []
        reserved: set[Member] = set()
        while self._ready:
            free = [member for member in self.members if member not in reserved and has_room(member)]
            if not free:
                break
            entry = self.entries.get(heappop(self._ready))
            if entry is None or entry.place != "ready":
                continue
            if self._is_blocked(entry):
                entry.place = "held"
                heappush(self._held.setdefault(entry.key, []), entry.seq)
                continue
            member = _ranked([each for each in free if not each.silent] or free, entry.key)
            if entry.failures.losses >= LOSSES_TOGETHER and member.has:
                reserved.add(member)  # until it has nothing else
                left.append(entry.seq)
                continue
            self._give(member, entry)
            yield member, entry
        for seq in left:
            heappush(self._ready, seq)

    def next_due_us(self) -> int | None:
        """Give when something that is delayed may be given."""
        while self._delayed:
            due_us, seq = self._delayed[0]
            entry = self.entries.get(seq)
            if entry is not None and entry.place == "delayed" and entry.failures.due_us == due_us:
                return due_us
            heappop(self._delayed)
        return None

    def is_settled(self, seq: int) -> bool:
        """Tell whether an event is done, or not wanted, for all that is known."""
        return seq not in self.entries and (seq <= self.position or seq in self._beyond)

    def position_without(self, gone: Collection[int]) -> int:
        """Give the position that there will be once ``gone`` are settled."""
        for index in range(self._first, len(self._order)):
            seq = self._order[index]
            if seq in self.entries and seq not in gone:
                return max(self.position, seq - 1)
        return max(self.position, self.read_to)

    def settle(self, seqs: Iterable[int], position: int) -> None:
        """Be done with events; everything up to ``position`` is then."""
        for seq in seqs:
            entry = self.entries.pop(seq, None)
            self._beyond_add(seq)
            if entry is not None:
                self._bytes -= len(entry.event.data)
                self._take_from_member(entry)
                self._release(entry)
        self.position = max(self.position, position)
        self._forget_settled()

    def fail(self, seq: int, failures: Failures) -> None:
        """Have an event given again, at ``failures.due_us``."""
        entry = self.entries.get(seq)
        if entry is not None:
            entry.failures = failures
            entry.saved = True
            self._take_from_member(entry)
            self._put_back(entry)

    def let_die(self, entry: Entry) -> None:
        """Give an event to nobody: it is about to become a dead letter."""
        self._take_from_member(entry)
        self._holders.setdefault(entry.key, set()).add(entry.seq)
        entry.place = "dying"

    def _wake_delayed(self, now_us: int) -> None:
        while self._delayed and self._delayed[0][0] <= now_us:
            _, seq = heappop(self._delayed)
            entry = self.entries.get(seq)
            if entry is not None and entry.place == "delayed" and entry.failures.due_us <= now_us:
                self._make_ready(entry)

    def _is_beyond(self, divisor: int) -> bool:
        return (
            len(self.entries) * divisor >= MAX_HELD
            or self._bytes * divisor >= MAX_HELD_BYTES
            or len(self._beyond) * divisor >= MAX_BEYOND
        )

    def _take_in(self, entry: Entry) -> None:
        self.entries[entry.seq] = entry
        self._bytes += len(entry.event.data)
        if entry.saved:
            self._put_back(entry)
        else:
            self._make_ready(entry)

    def _make_ready(self, entry: Entry) -> None:
        entry.place = "ready"
        heappush(self._ready, entry.seq)

    def _put_back(self, entry: Entry) -> None:
        """Wait for another attempt, before what follows under the same key."""
        entry.member = None
        self._holders.setdefault(entry.key, set()).add(entry.seq)
        if entry.failures.due_us:
            entry.place = "delayed"
            heappush(self._delayed, (entry.failures.due_us, entry.seq))
        else:
            self._make_ready(entry)
        self._wake_earlier(entry)

    def _wake_earlier(self, entry: Entry) -> None:
        """Let those of the key go first that waited for this one, which was given: they were redriven."""
        held = self._held.get(entry.key)
        while held and held[0] < entry.seq:
            waiting = self.entries.get(heappop(held))
            if waiting is not None and waiting.place == "held":
                self._make_ready(waiting)
        if held is not None and not held:
            del self._held[entry.key]

    def _is_blocked(self, entry: Entry) -> bool:
        holders = self._holders.get(entry.key)
        if not holders:
            return False
        others = (self.entries[seq] for seq in holders if seq != entry.seq)
        return entry.seq != min(holders) or any(other.place in ("given", "dying") for other in others)

    def _give(self, member: Member, entry: Entry) -> None:
        entry.place = "given"
        entry.member = member
        member.has[entry.seq] = entry
        member.alone = entry.failures.losses >= LOSSES_TOGETHER
        if self._shared:
            self._holders.setdefault(entry.key, set()).add(entry.seq)
        else:
            self._release(entry)

    def _take_from_member(self, entry: Entry) -> None:
        if entry.member is not None:
            del entry.member.has[entry.seq]
            entry.member.alone = False
            entry.member = None

    def _release(self, entry: Entry) -> None:
        """Let the key go on."""
        holders = self._holders.get(entry.key)
        if holders is not None:
            holders.discard(entry.seq)
            if not holders:
                del self._holders[entry.key]
        held = self._held.get(entry.key)
        while held:
            waiting = self.entries.get(heappop(held))
            if waiting is not None and waiting.place == "held":
                self._make_ready(waiting)
                if self._shared:
                    break
        if held is not None and not held:
            del self._held[entry.key]

    def _beyond_add(self, seq: int) -> None:
        if seq > self.position and seq not in self._beyond:
            self._beyond.add(seq)
            heappush(self._beyond_order, seq)

    def _forget_settled(self) -> None:
        while self._beyond_order and self._beyond_order[0] <= self.position:
            self._beyond.discard(heappop(self._beyond_order))
        while self._first < len(self._order) and self._order[self._first] <= self.position:
            self._first += 1
        if self._first > MAX_HELD:
            del self._order[: self._first]
            self._first = 0


def _ranked(members: Sequence[Member], key: str) -> Member:
    """Choose by hash: a key stays with its member while the members stay, and that one has room."""
    if len(members) == 1:
        return members[0]
    return max(members, key=lambda member: blake2b(f"{member.name}/{key}".encode(), digest_size=8).digest())
