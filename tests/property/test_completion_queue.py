"""Turns: first come first served within a session, one at a time, nobody forgotten."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ksi_completion.queue_manager import Entry, QueueManager, Scope

SESSIONS = st.sampled_from(["a", "b", "c"])
SCOPES = st.sampled_from(
    [("queue", ""), ("session", "a"), ("session", "b"), ("provider", "p"), ("provider", "q")]
)
PROVIDERS = st.sampled_from(["p", "q"])


class Turns(RuleBasedStateMachine):
    """A list of what waits, and a set of what runs, know as much as the queue does."""

    def __init__(self) -> None:
        super().__init__()
        self.woken = 0
        self.queue = QueueManager(self.wake)
        self.waiting: list[Entry] = []
        self.running: list[Entry] = []
        self.number = 0
        self.delayed: set[str] = set()
        self.paused: set[tuple[Scope, str]] = set()

    def wake(self) -> None:
        self.woken += 1

    @rule(
        session=SESSIONS, provider=PROVIDERS, priority=st.sampled_from([0, 0, 1, 2, -1]), later=st.booleans()
    )
    def add(self, session: str, provider: str, priority: int, *, later: bool) -> None:
        self.number += 1
        entry = Entry(self.number, f"r{self.number}", session, provider, priority)
        self.queue.add(entry, is_delayed=later)
        self.waiting.append(entry)
        if later:
            self.delayed.add(entry.request_id)

    @precondition(lambda self: self.delayed)
    @rule(which=st.integers(0))
    def let_its_time_come(self, which: int) -> None:
        name = sorted(self.delayed)[which % len(self.delayed)]
        self.queue.ready(name)
        self.queue.ready(name)
        self.delayed.discard(name)

    @rule(what=SCOPES)
    def pause(self, what: tuple[Scope, str]) -> None:
        self.queue.pause(*what)
        self.paused.add(what)

    @rule(what=SCOPES)
    def resume(self, what: tuple[Scope, str]) -> None:
        before = self.woken
        self.queue.resume(*what)
        self.paused.discard(what)
        assert self.woken > before

    @rule(full=st.sets(PROVIDERS))
    def take(self, full: set[str]) -> None:
        busy = {entry.session_id for entry in self.running}
        firsts: dict[str, Entry] = {}
        for entry in self.waiting:
            firsts.setdefault(entry.session_id, entry)
        ready = [
            e
            for e in firsts.values()
            if e.session_id not in busy
            and e.provider not in full
            and e.request_id not in self.delayed
            and not self.paused & {("queue", ""), ("session", e.session_id), ("provider", e.provider)}
        ]
        urgent = {
            e.session_id: max(o.priority for o in self.waiting if o.session_id == e.session_id) for e in ready
        }
        expected = min(ready, key=lambda e: (-urgent[e.session_id], e.number), default=None)
        assert self.queue.next(lambda provider: provider not in full) == expected
        if expected is not None:
            self.waiting.remove(expected)
            self.running.append(expected)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def finish(self, which: int) -> None:
        before = self.woken
        self.queue.done(self.running.pop(which % len(self.running)))
        assert self.woken > before  # there is room now: whoever waits for a turn must look

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0), later=st.booleans())
    def put_back(self, which: int, *, later: bool) -> None:
        entry = self.running.pop(which % len(self.running))
        self.queue.put_back(entry, is_delayed=later)
        self.waiting = sorted([*self.waiting, entry])
        if later:
            self.delayed.add(entry.request_id)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0))
    def remove(self, which: int) -> None:
        entry = self.waiting.pop(which % len(self.waiting))
        assert self.queue.remove(entry.request_id) == entry
        self.delayed.discard(entry.request_id)

    @rule()
    def remove_what_does_not_wait(self) -> None:
        for entry in self.running:
            assert self.queue.remove(entry.request_id) is None

    @invariant()
    def counts_and_positions_agree(self) -> None:
        assert self.queue.queued == len(self.waiting)
        assert self.queue.delayed == len(self.delayed)
        assert self.queue.is_idle == (not self.running)
        assert list(self.queue.running) == sorted(self.running)
        assert all(entry.request_id in self.queue for entry in (*self.waiting, *self.running))
        assert f"r{self.number + 1}" not in self.queue
        assert len(self.queue) == len(self.waiting) + len(self.running)
        before: dict[str, int] = defaultdict(int)
        for entry in self.running:
            before[entry.session_id] += 1
            assert self.queue.position(entry) == 0
        for entry in self.waiting:
            assert self.queue.position(entry) == before[entry.session_id]
            before[entry.session_id] += 1
        told = {found.session_id: (found.queued, found.running) for found in self.queue.sessions()}
        assert set(told) == {entry.session_id for entry in (*self.waiting, *self.running)}
        for session, (queued, running) in told.items():
            assert queued == sum(entry.session_id == session for entry in self.waiting)
            assert [running] == [e.request_id for e in self.running if e.session_id == session] or [None]


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(SESSIONS, max_size=30))
def test_with_room_for_all_one_of_each_session_runs(sessions: list[str]) -> None:
    queue = QueueManager(lambda: None)
    for number, session in enumerate(sessions):
        queue.add(Entry(number, f"r{number}", session, "p"))
    taken = []
    while (entry := queue.next(lambda _: True)) is not None:
        taken.append(entry.session_id)
    assert sorted(taken) == sorted(set(sessions))
