"""However a subscriber lags, from any cursor that it was ever given it gets what is still to come."""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_daemon import subscriptions
from ksi_daemon.database import Transaction
from tests.support.databases import tell
from tests.support.following import Followed, SlowSink, followed

Step = tuple[str, int]

steps = st.lists(
    st.tuples(st.sampled_from(["tell", "tell passing", "tell others", "pass by", "read"]), st.integers(1, 5))
    | st.tuples(st.just("wait"), st.integers(0, 3)),
    max_size=30,
)


class Play:
    """A subscriber to ``demo:*``, and what was told while it read."""

    def __init__(self, bus: Followed, sink: SlowSink) -> None:
        self.bus = bus
        self.sink = sink
        self.wanted: list[int] = []
        """Seqs that the subscriber is to get."""
        self.head = 0

    async def act(self, step: Step) -> None:
        what, count = step
        match what:
            case "tell":
                await self.tell(count, "demo:told")
            case "tell passing":
                await self.tell_passing()
            case "tell others":
                await self.tell(count, "x:other")
            case "pass by":
                self.pass_by()
            case "read":
                self.sink.read(count)
            case "wait":
                for _ in range(count):
                    await asyncio.sleep(0)

    async def tell(self, count: int, event: str) -> None:
        seqs = range(self.head + 1, self.head + count + 1)
        self.head += count
        if event == "demo:told":
            self.wanted.extend(seqs)
        await self.bus.tell(*[f"d{seq}" for seq in seqs], event=event)

    async def tell_passing(self) -> None:
        """Tell an ephemeral and a durable event, in this order, within one turn of the loop."""

        def unit(tx: Transaction) -> None:
            tell(f"d{self.head}")(tx)
            tx.on_commit(self.pass_by)

        self.head += 1
        self.wanted.append(self.head)
        await self.bus.database.write(unit)

    def pass_by(self) -> None:
        self.bus.pass_by("e")

    async def finish(self) -> None:
        """Read to the end."""
        await self.tell(1, "demo:told")
        while not self.finished():
            self.sink.read()
            await self.sink.wait_until(lambda: self.sink.full or self.finished())

    def finished(self) -> bool:
        return self.sink.seqs[-1:] == [self.head] and bool(self.sink.marks("caught_up"))

    def check(self) -> None:
        """Hold each cursor against what came before it: no more and no less than the log has up to there."""
        seen: list[int] = []
        for got in self.sink.got:
            if got.seq is not None:
                seen.append(got.seq)
            assert seen == [seq for seq in self.wanted if seq <= got.position], got
        assert seen == self.wanted
        assert len(self.sink.marks("caught_up")) == 1
        assert {got.fields["reason"] for got in self.sink.marks("gap")} <= {"ephemeral_missed"}

    async def check_resuming(self, cursors: Sequence[str]) -> None:
        """Begin again at some of the cursors."""
        for cursor in cursors:
            again = self.bus.follow({"cursor": cursor}, patterns=["demo:*"])
            await again.wait_for_mark("caught_up")
            position = int(cursor.rpartition("-")[2])
            assert again.seqs == [seq for seq in self.wanted if seq > position]


@settings(max_examples=60)
@given(
    steps=steps,
    before=st.integers(0, 12),
    capacity=st.integers(1, 8),
    held=st.sampled_from([2, 10_000]),
    heartbeat_s=st.sampled_from([0.0, 60.0]),
    resumed=st.lists(st.integers(0, 99), max_size=3),
)
def test_no_cursor_ever_given_skips_an_event(
    steps: list[Step], before: int, capacity: int, held: int, heartbeat_s: float, resumed: list[int]
) -> None:
    async def play(folder: Path) -> None:
        async with asyncio.timeout(15), followed(folder, heartbeat_s=heartbeat_s) as bus:
            sink = SlowSink(capacity)
            play = Play(bus, sink)
            if before:
                await play.tell(before, "demo:told")
            bus.follow("beginning", sink, patterns=["demo:*"])
            for step in steps:
                await play.act(step)
            await play.finish()
            play.check()
            cursors = sorted({got.cursor for got in sink.got})
            await play.check_resuming([cursors[number % len(cursors)] for number in resumed])

    folder = Path(tempfile.mkdtemp(prefix="ksi"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subscriptions, "MAX_EVENTS", held)
            asyncio.run(play(folder))
    finally:
        shutil.rmtree(folder)
