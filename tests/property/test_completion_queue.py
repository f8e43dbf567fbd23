"""Turns: first come first served within a session, one at a time, nobody forgotten."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ksi_completion.queue_manager import Entry, QueueManager

SESSIONS = st.sampled_from(["a", "b", "c"])
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

    def wake(self) -> None:
        self.woken += 1

    @rule(session=SESSIONS, provider=PROVIDERS)
    def add(self, session: str, provider: str) -> None:
        self.number += 1
        entry = Entry(self.number, f"r{self.number}", session, provider)
        self.queue.add(entry)
        self.waiting.append(entry)

    @rule(full=st.sets(PROVIDERS))
    def take(self, full: set[str]) -> None:
        busy = {entry.session_id for entry in self.running}
        firsts: dict[str, Entry] = {}
        for entry in self.waiting:
            firsts.setdefault(entry.session_id, entry)
        ready = [e for e in firsts.values() if e.session_id not in busy and e.provider not in full]
        expected = min(ready, default=None)
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
    @rule(which=st.integers(0))
    def put_back(self, which: int) -> None:
        entry = self.running.pop(which % len(self.running))
        self.queue.done(entry)
        self.queue.add(entry)
        self.waiting = sorted([*self.waiting, entry])

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0))
    def remove(self, which: int) -> None:
        entry = self.waiting.pop(which % len(self.waiting))
        assert self.queue.remove(entry.request_id) == entry

    @rule()
    def remove_what_does_not_wait(self) -> None:
        for entry in self.running:
            assert self.queue.remove(entry.request_id) is None

    @invariant()
    def counts_and_positions_agree(self) -> None:
        assert self.queue.queued == len(self.waiting)
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
