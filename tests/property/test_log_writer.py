"""Whatever units do in whatever groups: seq is gapless, versions are right, the chain can be verified."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ksi_common.envelope import StoredEvent
from ksi_common.errors import AlreadyExists, FailedPrecondition
from ksi_daemon.database import Transaction, writer
from ksi_daemon.database.errors import StoreUnavailable, UnitInterrupted
from ksi_daemon.database.log_writer import EMPTY_CHAIN, READ, digest_of, from_row
from ksi_daemon.database.writer import Job
from tests.support.databases import bench, fill_the_disk, interrupt_itself, put, tell

Expected = str | int


class Deliberate(Exception):
    """A unit raises it for no reason."""


def fail(tx: Transaction) -> None:
    raise Deliberate


def make_and_fail(tx: Transaction) -> None:
    tx.execute("CREATE TABLE made (x)")
    raise Deliberate


def undo_a_part(tx: Transaction) -> None:
    tx.execute("SAVEPOINT part")
    put("undone")(tx)
    tx.execute("ROLLBACK TO part")
    tx.execute("RELEASE part")


def hide_a_loss(tx: Transaction) -> None:
    with suppress(Exception):
        interrupt_itself(tx)


def leave_open(tx: Transaction) -> None:
    tx.execute("SAVEPOINT part")


ENDS: dict[str, tuple[Callable[[Transaction], Any], type[Exception] | None]] = {
    "well": (lambda tx: None, None),
    "raises": (fail, Deliberate),
    "makes": (make_and_fail, Deliberate),
    "full": (fill_the_disk, StoreUnavailable),
    "interrupted": (interrupt_itself, UnitInterrupted),
    "hides a loss": (hide_a_loss, FailedPrecondition),
    "undoes a part": (undo_a_part, None),
    "leaves open": (leave_open, None),
}
"""How a unit may end, and with what error."""


@dataclass(frozen=True)
class Told:
    """One event that a unit tells."""

    event_id: str | None
    data: bytes
    stream: str | None
    expected: Expected


@dataclass(frozen=True)
class Plan:
    """What a unit does, in order: a row of its own if it has one, events, an end."""

    row: int | None
    told: list[Told]
    end: str

    def unit(self, tx: Transaction) -> list[StoredEvent]:
        if self.row is not None:
            tx.execute("INSERT OR IGNORE INTO things VALUES (?)", (self.row,))
        stored = [
            tell(each.event_id, data=each.data, stream=each.stream, expected_version=each.expected)(tx)
            for each in self.told
        ]
        ENDS[self.end][0](tx)
        return stored


@dataclass
class Model:
    """A log as a list, in which a unit is tried on a copy."""

    log: list[tuple[str | None, bytes, str | None, int | None]] = field(default_factory=list)
    rows: set[int | None] = field(default_factory=set)

    def run(self, plan: Plan) -> type[Exception] | None:
        trial = list(self.log)
        for told in plan.told:
            known = next((row for row in trial if row[0] and row[0] == told.event_id), None)
            if known is not None:
                if (known[1], known[2]) != (told.data, told.stream):
                    return AlreadyExists
                continue
            version = self.version(trial, told.stream)
            if told.stream is not None and not fits(told.expected, version):
                return FailedPrecondition
            trial.append((told.event_id, told.data, told.stream, version + 1 if told.stream else None))
        error = ENDS[plan.end][1]
        if error is None:
            self.log = trial
            self.rows |= {plan.row} - {None}
        return error

    @staticmethod
    def version(log: list[Any], stream: str | None) -> int:
        return sum(row[2] == stream for row in log)


def fits(expected: Expected, version: int) -> bool:
    return {"any": True, "none": version == 0, "exists": version > 0}.get(str(expected), expected == version)


events = st.builds(
    Told,
    st.none() | st.sampled_from("abc"),
    st.sampled_from([b"{}", b"{}", b"{}", b'{"n":1}']),
    st.none() | st.sampled_from("st"),
    st.sampled_from(["any", "any", "none", "exists", 0, 1, 2, 5]),
)
plans = st.builds(
    Plan,
    st.none() | st.integers(0, 20),
    st.lists(events, max_size=4),
    st.sampled_from(["well", "well", "well", *ENDS]),
)


class LogMachine(RuleBasedStateMachine):
    """Groups of units go to a real writer and, one by one, to the model."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ksi"))
        self.model = Model()
        self.published: list[StoredEvent] = []
        self.start()

    def start(self) -> None:
        self.stack = ExitStack()
        # Groups without savepoints soon again: they are what most groups are.
        self.stack.enter_context(patch.object(writer, "WARY_GROUPS", 1))
        self.desk = self.stack.enter_context(bench(self.folder))
        self.desk.connection.execute("PRAGMA synchronous = OFF")  # nobody cuts the power here

    @rule(group=st.lists(plans, min_size=1, max_size=5))
    def write(self, group: list[Plan]) -> None:
        jobs = self.desk.group(*[plan.unit for plan in group])
        for plan, job in zip(group, jobs, strict=True):
            expected = self.model.run(plan)
            assert expected is None if job.error is None else type(job.error) is expected, job.error
            self.deliver(job)

    def deliver(self, job: Job) -> None:
        self.published.extend(job.told)
        if job.error is None:
            by_seq = {event.seq: event.event_id for event in self.published}
            assert all(by_seq[event.seq] == event.event_id for event in job.value)
        else:
            assert (job.value, list(job.told)) == (None, [])

    @rule()
    def restart(self) -> None:
        self.stack.close()
        self.start()

    @invariant()
    def the_log_is_that_of_the_model(self) -> None:
        rows = self.desk.connection.execute(f"SELECT {READ} FROM log ORDER BY seq").fetchall()
        stored = [from_row(row) for row in rows]
        assert [event.seq for event in stored] == list(range(1, len(self.model.log) + 1))
        assert [(event.data, event.stream, event.version) for event in stored] == [
            row[1:] for row in self.model.log
        ]
        assert [event.event_id for event in self.published] == [event.event_id for event in stored]
        assert self.desk.writer.head == len(stored)

    @invariant()
    def what_else_the_units_did_is_that_of_the_model(self) -> None:
        things = {x for (x,) in self.desk.connection.execute("SELECT x FROM things")}
        assert things == self.model.rows

    @invariant()
    def the_chain_can_be_verified(self) -> None:
        chain = EMPTY_CHAIN
        rows = self.desk.connection.execute(f"SELECT {READ} FROM log ORDER BY seq").fetchall()
        kept = self.desk.connection.execute("SELECT seq, digest, chain FROM log ORDER BY seq").fetchall()
        for row, (seq, digest, stored) in zip(rows, kept, strict=True):
            assert digest == digest_of(from_row(row))
            chain = sha256(chain + seq.to_bytes(8) + digest).digest()
            assert chain == stored

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()
            shutil.rmtree(self.folder)


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
