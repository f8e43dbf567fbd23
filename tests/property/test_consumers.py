"""Named consumers against a model: whatever members do, and whenever the daemon stops, all is done."""

import asyncio
import shutil
import tempfile
from asyncio import TaskGroup
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_common.errors import KSIError
from ksi_common.frames import MarkKind
from ksi_daemon.consumers import Consumers, Refusal, Wish
from ksi_daemon.consumers.ledger import Ledger
from ksi_daemon.database import Transaction
from ksi_daemon.dead_letters import DatabaseDeadLetters
from ksi_daemon.hub import Batch
from ksi_daemon.testing import FakeClock
from tests.support.databases import tell
from tests.support.following import Followed, followed
from tests.support.scale import scaled
from tests.support.waiting import eventually

MAX_ATTEMPTS = 3
STREAMS = 3
GROUP = ("group", "g")

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["tell", "tell", "join", "leave", "ack", "ack", "nak", "give up", "restart", "redrive"]
        ),
        st.integers(0, 5),
    ),
    max_size=25,
)


@dataclass(eq=False)
class Taker:
    """A member whose events wait until the test says what becomes of them."""

    name: str
    play: "Play"
    has: dict[int, str] = field(default_factory=dict)
    """Seqs with their keys."""
    full: bool = False

    def deliver(self, batch: Batch) -> None:
        for event in batch.events:
            assert event.seq is not None
            attempt = orjson.loads(batch.lines(b"1").splitlines()[list(batch.events).index(event)])["data"][
                "attempt"
            ]
            try:
                self.play.model.give(self.name, event.seq, event.stream or "", attempt)
            except AssertionError as error:  # the daemon would take it for a bug of its own
                self.play.wrong.append(error)
            self.has[event.seq] = event.stream or ""

    def mark(self, kind: MarkKind, cursor: str, fields: Mapping[str, Any]) -> None:
        assert kind != "gap", (cursor, fields)

    async def wait_drained(self) -> None: ...


@dataclass
class Model:
    """What a group is: each event is given until it is done, and a key has one event at a time."""

    told: dict[int, str] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)
    naks: dict[int, int] = field(default_factory=dict)
    holder: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Who has which event of a key."""
    redriven: set[int] = field(default_factory=set)
    deciding: set[int] = field(default_factory=set)
    """What failed just now, and may be dead."""
    relied_on: set[int] = field(default_factory=set)
    """Those that must be, since what follows them was given."""

    def give(self, member: str, seq: int, key: str, attempt: int) -> None:
        assert seq in self.told, f"{seq} was never told"
        assert seq not in self.done, f"{seq} is done, and came again"
        assert seq not in self.dead, f"{seq} is dead, and came again"
        assert key not in self.holder, f"{seq} came while {self.holder[key]} of {key} is in flight"
        before = {other for other, its in self.told.items() if its == key and other < seq}
        # A letter that is redriven comes after what followed it.
        left = (before & self.open) - self.redriven
        assert left <= self.deciding, f"{seq} came before {left} of {key}"
        self.relied_on |= left
        assert attempt > self.naks.get(seq, 0), (
            f"{seq} is given as {attempt} after {self.naks.get(seq)} failures"
        )
        self.holder[key] = (member, seq)

    def let_go(self, member: str) -> None:
        self.holder = {key: held for key, held in self.holder.items() if held[0] != member}

    def settle(self, seq: int) -> None:
        self.holder = {key: held for key, held in self.holder.items() if held[1] != seq}

    @property
    def open(self) -> set[int]:
        """What is still to be done."""
        return set(self.told) - self.done - self.dead


class Play:
    """A group on a real database, which is closed and opened again in between."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = Model()
        self.members: dict[str, tuple[Taker, asyncio.Task[None]]] = {}
        self.wrong: list[AssertionError] = []
        self._head = 0

    async def run(self, script: Sequence[tuple[str, int]]) -> None:
        lives: list[list[tuple[str, int]]] = [[]]
        for step in script:
            if step[0] == "restart":
                lives.append([])
            else:
                lives[-1].append(step)
        for number, life in enumerate(lives):
            async with followed(self.folder) as bus, TaskGroup() as tasks:
                self._open(bus, tasks)
                for step in life:
                    await self._act(step)
                if number == len(lives) - 1:
                    await self._finish()
                self.stopping = True
                for name in tuple(self.members):
                    await self._leave(name)
                for running in tuple(self.consumers._running.values()):
                    await running.ended.wait()

    def _open(self, bus: Followed, tasks: TaskGroup) -> None:
        self.bus, self.tasks, self.stopping = bus, tasks, False
        clock = FakeClock()
        self.letters = DatabaseDeadLetters(bus.database, clock)
        self.consumers = Consumers(
            bus.database, bus.subscriptions, self.letters, clock, tasks, stopping=lambda: self.stopping
        )

    async def _act(self, step: tuple[str, int]) -> None:
        what, number = step
        match what:
            case "tell":
                for _ in range(number):
                    self._head += 1
                    await self.bus.database.write(partial(self._tell, number=self._head))
            case "join":
                await self._join("abc"[number % 3])
            case "leave":
                await self._leave("abc"[number % 3])
            case "redrive":
                await self._redrive(number)
            case _:
                await self._say(what, number)
        await self._settle()

    def _tell(self, tx: Transaction, number: int) -> None:
        key = f"demo/{number % STREAMS}"
        stored = tell(f"e{number}", stream=key)(tx)
        tx.on_commit(lambda: self.model.told.update({stored.seq: key}))

    async def _join(self, name: str) -> None:
        await self._leave(name)
        taker = Taker(name, self)
        wish = Wish(
            patterns=("demo:*",), start="beginning", consumer=name, group="g", max_inflight=2,
            max_attempts=MAX_ATTEMPTS,
        )  # fmt: skip

        async def follow() -> None:
            await self.consumers.follow(wish, taker)

        self.members[name] = (taker, self.tasks.create_task(follow()))
        await self._wait_seated(name)
        await self._settle()

    async def _wait_seated(self, name: str) -> None:
        for _ in range(1_000_000):  # it reads its rows in a thread, which tells nobody here
            if name in self._seated():
                return
            await asyncio.sleep(0)
        raise AssertionError(f"{name} follows in vain")

    def _seated(self) -> set[str]:
        running = self.consumers._running.values()
        return {member.name for one in running for member in one.seats}

    async def _leave(self, name: str) -> None:
        if name in self.members:
            taker, task = self.members.pop(name)
            self.model.let_go(name)
            self.model.deciding |= set(taker.has)
            task.cancel()
            await asyncio.wait([task])

    async def _say(self, what: str, number: int) -> None:
        held = [(taker, seq) for taker, _ in self.members.values() for seq in taker.has]
        if not held:
            return
        taker, seq = held[number % len(held)]
        del taker.has[seq]
        refusal = {
            "ack": None,
            "nak": Refusal(delay_s=0),
            "give up": Refusal(give_up=True),
        }[what]
        # Before it is said: what follows under the key may come before the answer.
        self.model.settle(seq)
        if refusal is None:
            self.model.done.add(seq)
        else:
            self.model.naks[seq] = self.model.naks.get(seq, 0) + 1
            self.model.deciding.add(seq)
            if refusal.give_up:
                self.model.dead.add(seq)
        taken = await self.consumers.report(GROUP, [self.bus.log.cursor(seq)], refusal)
        assert taken == 1, f"{what} of {seq} was about {taken} events"
        await self._note_dead()

    async def _redrive(self, number: int) -> None:
        dead, _ = await self.letters.page({"state": "dead"}, after=0, limit=100)
        if dead:
            letter = dead[number % len(dead)]
            assert letter.seq is not None
            self.model.dead.discard(letter.seq)
            self.model.redriven.add(letter.seq)
            self.model.naks[letter.seq] = 0
            assert await self.letters.redrive([letter.id]) == ([letter.id], [])
            assert await self.letters.redrive([letter.id]) == ([], [letter.id])

    async def _note_dead(self) -> None:
        """Let the model know of those that had all their attempts: nothing else may be dead."""
        dead, _ = await self.letters.page({"state": "dead"}, after=0, limit=1000)
        seqs = {letter.seq for letter in dead if letter.seq is not None}
        assert self.model.dead <= seqs
        assert not seqs & self.model.done
        assert self.model.relied_on <= seqs, "what follows was given, and what failed is not dead"
        self.model.dead = seqs
        self.model.deciding.clear()
        self.model.relied_on.clear()

    async def _settle(self) -> None:
        """Let everything that was said come to rest, and what was told be read."""
        await self._turns()
        if not await self._has_read():
            await eventually(self._has_read)
            await self._turns()
        if self.wrong:
            raise self.wrong[0]
        await self._note_dead()

    async def _turns(self) -> None:
        for _ in range(6):
            await self.bus.database.write_apart(lambda _: None)
            for _ in range(4):
                await asyncio.sleep(0)

    async def _has_read(self) -> bool:
        """Tell whether consumers hold what they may: the log is read in a thread, which takes its time."""
        last = max(self.model.told, default=0)
        ledgers = [one.ledger for one in self.consumers._running.values() if not one.closing]
        return all(ledger.half_full or ledger.read_to >= last for ledger in ledgers)

    async def _finish(self) -> None:
        """Acknowledge everything, until there is nothing left."""
        await self._join("a")
        for _ in range(20 * len(self.model.told) + 20):
            if not self.model.open:
                break
            await self._say("ack", 0)
            await self._settle()
        assert not self.model.open, f"{sorted(self.model.open)} never came"
        (state,) = await self.consumers.listed(*GROUP)
        assert (state.lag, state.waiting_again, state.dead_letters) == (0, 0, len(self.model.dead))


@pytest.mark.timeout(scaled(240, 1200))
@given(steps)
@settings(max_examples=scaled(40, 1000))
def test_a_group_does_each_event_in_order_of_its_key_or_buries_it(script: list[tuple[str, int]]) -> None:
    play(script)


SHOW = [
    ("join", 0), ("tell", 5), ("join", 1), ("tell", 5), ("ack", 1), ("nak", 0), ("nak", 0), ("nak", 0),
    ("ack", 0), ("restart", 0), ("join", 2), ("give up", 0), ("redrive", 0), ("tell", 3), ("leave", 2),
]  # fmt: skip


def test_a_story_with_everything_in_it() -> None:
    play(SHOW)


def test_what_is_redriven_goes_before_a_later_one_that_is_taken_back() -> None:
    play([("tell", 5), ("join", 0), ("join", 1), ("ack", 0), ("give up", 0), ("redrive", 0)])


@pytest.mark.parametrize(
    ("method", "fault", "finding"),
    [
        ("_is_blocked", lambda *_: False, "came while|came before"),
        ("position_without", lambda self, _: self.read_to, "came before|never came"),
        ("fail", lambda self, seq, _: self.settle([seq], 0), "is not dead|never came"),
    ],
)
def test_a_ledger_with_a_fault_is_found_out(
    monkeypatch: pytest.MonkeyPatch, method: str, fault: Any, finding: str
) -> None:
    monkeypatch.setattr(Ledger, method, fault)
    with pytest.raises((AssertionError, BaseExceptionGroup, KSIError)) as found:
        play(SHOW)
    assert any(word in _all_said(found.value) for word in finding.split("|")), _all_said(found.value)


def _all_said(error: BaseException) -> str:
    parts = getattr(error, "exceptions", ())
    return " ".join([str(error), *map(_all_said, parts)])


def play(script: list[tuple[str, int]]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ksi-"))
    try:
        asyncio.run(Play(folder).run(script))
    finally:
        shutil.rmtree(folder)
