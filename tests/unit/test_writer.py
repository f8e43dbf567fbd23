"""The writer: one commit for a group, in which each unit stands or falls alone."""

import errno
import sqlite3  # noqa: TID251 -- what the writer makes of its errors
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from ksi_common.async_db import AsyncSQLiteDB
from ksi_common.envelope import StoredEvent
from ksi_common.errors import FailedPrecondition
from ksi_daemon.database import Transaction, Unit, log_index, writer
from ksi_daemon.database.errors import StoreUnavailable, UnitInterrupted
from ksi_daemon.database.wal import WalFile
from ksi_daemon.database.writer import MAX_GROUP, Job
from ksi_daemon.testing import FakeClock
from tests.support.databases import Bench, bench, fill_the_disk, interrupt_itself, nobody, put, rows, tell
from tests.support.waiting import eventually


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def things(desk: Bench) -> list[object]:
    return [x for (x,) in desk.connection.execute("SELECT x FROM things ORDER BY rowid")]


def logged(desk: Bench) -> list[tuple[int, str]]:
    return desk.connection.execute("SELECT seq, event_id FROM log ORDER BY seq").fetchall()


def both(*units: Unit[Any]) -> Unit[Any]:
    """Make one unit of several."""

    def unit(tx: Transaction) -> None:
        for each in units:
            each(tx)

    return unit


def raising(error: BaseException) -> Unit[Any]:
    def unit(tx: Transaction) -> None:
        put("guilty")(tx)
        tell("guilty")(tx)
        tx.on_commit(lambda: None)
        raise error

    return unit


def in_between(desk: Bench, guilty: Unit[Any]) -> Job:
    """Run a unit between innocent ones: they are committed, in order, and it leaves no trace."""
    first, job, second = desk.group(both(put("a"), tell("a")), guilty, both(tell("b"), put("b")))
    assert (first.error, second.error) == (None, None)
    assert things(desk) == ["a", "b"]
    assert logged(desk) == [(1, "a"), (2, "b")]
    assert [event.seq for each in (first, second) for event in each.told] == [1, 2]
    assert (list(job.told), list(job.after_commit), job.value) == ([], [], None)
    return job


def test_a_group_is_one_commit(desk: Bench) -> None:
    jobs = desk.group(put(1), put(2), tell("x"))
    assert [job.value for job in jobs[:2]] == [1, 2]
    assert isinstance(jobs[2].value, StoredEvent)
    assert (desk.writer.groups, desk.writer.units) == (1, 3)
    assert things(desk) == [1, 2]


def test_more_than_a_group_may_hold_is_several_in_order(desk: Bench) -> None:
    desk.writer.submit([Job(tell(f"{n:05}"), None, None, nobody) for n in range(MAX_GROUP + 1)])
    sizes = [len(desk.done.get(timeout=30)[0]) for _ in range(2)]
    assert sizes == [MAX_GROUP, 1]
    assert logged(desk) == [(n + 1, f"{n:05}") for n in range(MAX_GROUP + 1)]


def test_what_waits_when_the_writer_is_free_is_one_group(tmp_path: Path) -> None:
    with bench(tmp_path) as desk:
        entered: list[bool] = []

        def submit_more(tx: Transaction) -> None:
            if not entered:
                entered.append(True)
                for n in range(10):
                    desk.writer.submit([Job(put(n), None, None, nobody)])

        desk.group(submit_more)
        jobs, _ = desk.done.get(timeout=30)
        assert [job.value for job in jobs] == list(range(10))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        FailedPrecondition("x"),
        StopIteration(),
        MemoryError(),
        RecursionError(),
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
        BaseException("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_unit_that_raises_gets_what_it_raised(desk: Bench, error: BaseException) -> None:
    assert in_between(desk, raising(error)).error is error


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("INSERT INTO things VALUES ('a')", sqlite3.IntegrityError),
        ("INSERT INTO missing VALUES (1)", sqlite3.OperationalError),
        ("SELEKT 1", sqlite3.OperationalError),
        ("SELECT 1; SELECT 2", Exception),
    ],
)
def test_a_statement_that_fails_undoes_its_unit_alone(desk: Bench, sql: str, kind: type[Exception]) -> None:
    job = in_between(desk, both(put("guilty"), tell("guilty"), lambda tx: tx.execute(sql)))
    assert isinstance(job.error, kind)


def test_a_full_disk_is_told_to_the_unit_that_filled_it(desk: Bench) -> None:
    job = in_between(desk, both(put("guilty"), tell("guilty"), fill_the_disk))
    assert isinstance(job.error, StoreUnavailable)
    assert job.error.hint == "free space on the disk of the database"
    assert desk.writer.groups == 1


def test_an_interrupted_unit_is_told_so(desk: Bench) -> None:
    job = in_between(desk, both(put("guilty"), tell("guilty"), interrupt_itself))
    assert isinstance(job.error, UnitInterrupted)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "


@pytest.mark.parametrize("sql", ["SELECT max(i) FROM n", "INSERT INTO things SELECT 0 FROM n WHERE i < 0"])
def test_a_unit_that_holds_the_writer_is_interrupted(desk: Bench, sql: str) -> None:
    job = in_between(desk, both(put("guilty"), lambda tx: tx.execute(ENDLESS + sql).fetchall()))
    assert isinstance(job.error, UnitInterrupted)
    assert job.error.details == {"reason": "unit_interrupted"}


def test_the_time_of_a_unit_is_its_own(desk: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that take their time are not interrupted because their group takes longer than one may."""
    some = ENDLESS.replace("FROM n)", "FROM n LIMIT 60000)") + "SELECT max(i) FROM n"
    clock = FakeClock()
    monkeypatch.setattr(writer, "monotonic", clock.monotonic)

    def unit(tx: Transaction) -> None:
        clock.advance(writer.UNIT_LIMIT_S * 0.9)
        tx.execute(some).fetchone()

    assert {job.error for job in desk.group(*[unit] * 20)} == {None}


def test_a_unit_that_hides_the_loss_of_its_transaction_writes_nothing_after_it(desk: Bench) -> None:
    def stubborn(tx: Transaction) -> None:
        for unit in (put("guilty"), fill_the_disk, put("after"), tell("after")):
            try:
                unit(tx)
            except (StoreUnavailable, sqlite3.OperationalError):
                continue

    assert in_between(desk, stubborn).error is not None


def test_a_unit_may_undo_a_part_of_itself(desk: Bench) -> None:
    def unit(tx: Transaction) -> None:
        put("kept")(tx)
        tx.execute("SAVEPOINT part")
        put("undone")(tx)
        tx.execute("ROLLBACK TO part")
        tx.execute("RELEASE part")
        tell("kept")(tx)

    (job,) = desk.group(unit)
    assert job.error is None
    assert things(desk) == ["kept"]
    assert logged(desk) == [(1, "kept")]


@pytest.mark.parametrize(
    "sql",
    ["COMMIT", "commit;", " ; -- so\n/* or so */ End transaction", "ROLLBACK", "BEGIN IMMEDIATE", "END"],
)
def test_a_unit_may_not_end_the_transaction(desk: Bench, sql: str) -> None:
    job = in_between(desk, both(put("guilty"), lambda tx: tx.execute(sql).fetchall()))
    assert isinstance(job.error, FailedPrecondition)
    assert job.error.details["reason"] == "transaction_control"


def test_a_savepoint_left_open_ends_with_its_unit(desk: Bench) -> None:
    desk.group(lambda tx: tx.execute("SAVEPOINT part"), put("a"), raising(ValueError()), put("b"))
    assert things(desk) == ["a", "b"]


def test_a_read_that_is_left_open_stops_neither_commit_nor_undo(desk: Bench) -> None:
    cursors: list[Any] = []

    def reading(tx: Transaction) -> None:
        cursors.append(tx.execute(ENDLESS + "SELECT i FROM n"))
        cursors[-1].fetchone()

    def reading_and_failing(tx: Transaction) -> None:
        reading(tx)
        raise ValueError

    jobs = desk.group(put("a"), reading, reading_and_failing, put("b"))
    assert [type(job.error) for job in jobs] == [type(None), type(None), ValueError, type(None)]
    assert things(desk) == ["a", "b"]


def test_a_unit_that_is_run_again_tells_only_what_it_told_the_last_time(desk: Bench) -> None:
    """In the group it finds the stream at 1; alone, after the one before it failed, at 0."""

    def failing_alone() -> Unit[Any]:
        runs: list[int] = []

        def unit(tx: Transaction) -> None:
            runs.append(1)
            tell("first", stream="s")(tx)
            if len(runs) > 1:
                raise ValueError

        return unit

    second = both(tell("second", stream="s", expected_version=1), lambda tx: tx.on_commit(lambda: None))
    jobs = desk.group(failing_alone(), second, fill_the_disk)
    assert [type(job.error) for job in jobs] == [ValueError, FailedPrecondition, StoreUnavailable]
    assert [(list(job.told), list(job.after_commit)) for job in jobs] == [([], [])] * 3
    assert logged(desk) == []


def counted(unit: Unit[Any], runs: list[int]) -> Unit[Any]:
    """Make a unit that counts how often it is run."""

    def counting(tx: Transaction) -> None:
        runs.append(1)
        unit(tx)

    return counting


def test_units_that_do_well_have_no_savepoints(desk: Bench) -> None:
    ran: list[str] = []
    desk.connection.set_trace_callback(ran.append)
    desk.group(put("a"), put("b"))
    assert not [statement for statement in ran if statement.startswith(("SAVEPOINT", "RELEASE"))]


def test_a_unit_that_fails_before_it_changed_anything_lets_its_neighbours_run_once(desk: Bench) -> None:
    def looking(tx: Transaction) -> None:
        tell("guilty")(tx)
        tx.execute("SELECT * FROM things").fetchall()
        raise ValueError

    runs: list[int] = []
    jobs = desk.group(counted(put("a"), runs), looking, counted(both(tell("b"), put("b")), runs))
    assert [type(job.error) for job in jobs] == [type(None), ValueError, type(None)]
    assert (len(runs), things(desk), logged(desk)) == (2, ["a", "b"], [(1, "b")])


def test_a_unit_that_fails_after_it_changed_something_has_the_group_run_again_with_savepoints(
    desk: Bench,
) -> None:
    runs: list[int] = []
    for number, again in enumerate((2, 1, 1)):  # the groups after it have savepoints from the start
        runs.clear()
        desk.group(counted(put(number), runs), raising(ValueError()))
        assert len(runs) == again
    assert things(desk) == [0, 1, 2]
    for _ in range(writer.WARY_GROUPS):
        desk.group(tell())
    runs.clear()
    desk.group(counted(put(3), runs), raising(ValueError()))
    assert len(runs) == 2


def test_a_change_that_is_not_counted_is_undone_with_its_unit(desk: Bench) -> None:
    def making(tx: Transaction) -> None:
        tx.execute("CREATE TABLE made (x)")
        raise ValueError

    in_between(desk, making)
    assert desk.connection.execute("SELECT name FROM sqlite_schema WHERE name = 'made'").fetchall() == []


def hiding(unit: Unit[Any]) -> Unit[Any]:
    """Make a unit that says nothing of its failure, and does nothing after it."""

    def hide(tx: Transaction) -> None:
        with suppress(Exception):
            unit(tx)

    return hide


@pytest.mark.parametrize("lost", [fill_the_disk, interrupt_itself], ids=["full", "interrupted"])
def test_a_unit_that_hides_the_loss_of_its_transaction_and_ends_harms_nobody(
    desk: Bench, lost: Unit[Any]
) -> None:
    job = in_between(desk, hiding(lost))
    assert isinstance(job.error, FailedPrecondition)
    desk.group(hiding(lost), tell(), tell(), tell())
    assert len(logged(desk)) == 5


def test_a_savepoint_left_open_is_unknown_to_the_next_unit(desk: Bench) -> None:
    left_open = both(lambda tx: tx.execute("SAVEPOINT part"), put("a"))
    jobs = desk.group(left_open, put("b"), lambda tx: tx.execute("ROLLBACK TO part"))
    assert [job.error is None for job in jobs] == [True, True, False]
    assert things(desk) == ["a", "b"]


def test_rows_that_are_returned_and_not_taken_are_undone_with_their_unit(desk: Bench) -> None:
    kept: list[Any] = []

    def guilty(tx: Transaction) -> None:
        kept.append(tx.execute("INSERT INTO things VALUES ('x'), ('y'), ('z') RETURNING x"))
        kept[-1].fetchone()
        raise ValueError

    job = in_between(desk, both(guilty))
    assert isinstance(job.error, ValueError)


def test_units_of_a_group_see_each_other(desk: Bench) -> None:
    count: Unit[Any] = lambda tx: tx.execute("SELECT count(*) FROM things").fetchone()[0]  # noqa: E731 -- one value
    jobs = desk.group(put(1), count, raising(ValueError()), count)
    assert [job.value for job in jobs] == [1, 1, None, 1]


def test_the_head_is_that_of_the_last_commit(desk: Bench) -> None:
    desk.group(tell(), tell(), raising(ValueError()))
    assert desk.writer.head == 2
    desk.group(interrupt_itself)
    assert desk.writer.head == 2


async def test_nothing_is_kept_of_a_group_that_is_delivered(desk: Bench) -> None:
    unit = put(1)
    left = weakref.ref(unit)
    desk.group(unit)
    del unit

    async def gone() -> bool:
        return left() is None

    await eventually(gone, patience_s=20)


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    with bench(tmp_path) as desk:
        desk.group(tell("a"), tell("b"))
    with bench(tmp_path) as desk:
        assert desk.writer.head == 2
        desk.group(tell("c"))
        assert logged(desk) == [(1, "a"), (2, "b"), (3, "c")]


def test_stop_drains(tmp_path: Path) -> None:
    with bench(tmp_path) as desk:
        for n in range(100):
            desk.writer.submit([Job(put(n), None, None, nobody)])
        desk.writer.stop()
        desk.writer.join(timeout=30)
        assert not desk.writer.is_alive()
    assert rows(tmp_path / "ksi.db", "SELECT count(*) FROM things") == [(100,)]


class Condition:
    """Something that units want done before they commit: it notes when, and fails as ordered."""

    def __init__(self, desk: Bench, *errors: BaseException) -> None:
        self._desk = desk
        self._errors = list(errors)
        self.met: list[tuple[str, bool]] = []
        """By which thread, and whether a transaction was open."""

    def __call__(self) -> None:
        self.met.append((threading.current_thread().name, self._desk.connection.in_transaction))
        if self._errors:
            raise self._errors.pop(0)

    def unit(self, key: str, *units: Unit[Any]) -> Unit[Any]:
        return both(*units, lambda tx: tx.before_commit(key, self))


def test_a_condition_is_met_once_for_a_group_after_its_rows_and_before_its_commit(desk: Bench) -> None:
    file, other = Condition(desk), Condition(desk)
    ran: list[str] = []
    desk.connection.set_trace_callback(ran.append)
    note = both(file.unit("file"), lambda tx: tx.before_commit("last", lambda: ran.append("condition")))
    desk.group(file.unit("file", tell("a")), other.unit("other"), file.unit("file"), note)
    assert file.met == other.met == [("ksi-writer", True)]
    commit = ran.index("COMMIT")
    assert ran[commit - 2].startswith("INSERT INTO log")
    assert ran[commit - 1] == "condition"
    desk.group(file.unit("file"))
    assert len(file.met) == 2


def test_a_condition_that_cannot_be_met_refuses_the_units_that_name_it(desk: Bench) -> None:
    """It is not tried again for them: a second sync of bytes that are lost may succeed."""
    file, other = Condition(desk, OSError(errno.EIO, "Input/output error")), Condition(desk)
    jobs = desk.group(
        put("a"),
        file.unit("file", put("guilty"), tell("guilty"), lambda tx: tx.on_commit(lambda: None)),
        other.unit("other", put("b"), tell("b")),
        file.unit("file", put("guilty too")),
    )
    assert [type(job.error) for job in jobs] == [type(None), StoreUnavailable, type(None), StoreUnavailable]
    refused = jobs[1].error
    assert isinstance(refused, StoreUnavailable)
    assert refused.details == {"reason": "store_unavailable"}
    assert refused.hint is None
    assert (list(jobs[1].told), list(jobs[1].after_commit)) == ([], [])
    assert things(desk) == ["a", "b"]
    assert logged(desk) == [(1, "b")]
    assert (len(file.met), len(other.met)) == (1, 1)


def test_a_file_that_cannot_be_synced_says_nothing_of_the_database(desk: Bench) -> None:
    file = Condition(desk, OSError(errno.EIO, "Input/output error"))
    desk.group(file.unit("file", put("guilty")))
    assert desk.failures == []
    (again,) = desk.group(file.unit("file", put("again")))
    assert again.error is None
    assert things(desk) == ["again"]


def test_a_full_disk_of_a_file_is_told_with_what_to_do(desk: Bench) -> None:
    (job,) = desk.group(Condition(desk, OSError(errno.ENOSPC, "No space left on device")).unit("file"))
    assert isinstance(job.error, StoreUnavailable)
    assert job.error.hint == "free space on the disk"


def test_a_unit_that_fails_wants_nothing(desk: Bench) -> None:
    file = Condition(desk)
    desk.group(file.unit("file", raising(ValueError())), put("b"))
    desk.group(both(lambda tx: tx.before_commit("file", file), raising(ValueError())), put("c"))
    assert file.met == []
    assert things(desk) == ["b", "c"]


def test_what_was_met_for_a_group_holds_where_its_units_are_run_one_by_one(desk: Bench) -> None:
    file = Condition(desk)
    broken = Condition(desk, OSError(errno.EIO, "Input/output error"))
    jobs = desk.group(file.unit("file", put("a")), broken.unit("broken"), file.unit("file", put("b")))
    assert [type(job.error) for job in jobs] == [type(None), StoreUnavailable, type(None)]
    assert len(file.met) == 1


def test_what_a_lost_transaction_wanted_is_wanted_by_those_that_are_run_again_only(desk: Bench) -> None:
    file, other = Condition(desk), Condition(desk)
    runs: list[int] = []

    def wants_it_once(tx: Transaction) -> None:
        runs.append(1)
        if len(runs) == 1:
            tx.before_commit("other", other)

    desk.group(wants_it_once, file.unit("file", put("a")), fill_the_disk)
    assert (len(file.met), len(other.met)) == (1, 0)
    assert things(desk) == ["a"]


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt()], ids=lambda error: type(error).__name__
)
def test_a_condition_with_a_bug_is_its_units_own(desk: Bench, error: BaseException) -> None:
    jobs = desk.group(put("a"), Condition(desk, error).unit("file", put("guilty")), put("b"))
    assert [job.error for job in jobs] == [None, error, None]
    assert things(desk) == ["a", "b"]


class Faulty(sqlite3.Connection):
    """A connection whose disk fails, as ordered: errors of the device cannot be had in process."""

    faults: dict[str, int]
    """Statements, by the SQLite error that they fail with, once each."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        code = getattr(self, "faults", {}).pop(sql, None)
        if code is not None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = code
            raise error
        return super().execute(sql, *parameters)


_NOTE_INDEXED = "REPLACE INTO meta VALUES ('indexed_to', ?)"


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[tuple[Bench, Callable[..., None]]]:
    with bench(tmp_path, connection_class=Faulty) as made:

        def order(**faults: int) -> None:
            assert isinstance(made.connection, Faulty)
            made.connection.faults = {sql.replace("_", " "): code for sql, code in faults.items()}

        yield made, order


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC])
def test_after_a_failed_sync_nothing_is_tried_again(
    faulty: tuple[Bench, Callable[..., None]], code: int
) -> None:
    """The second fsync of a page may say that all is well though the page is gone."""
    desk, order = faulty
    order(COMMIT=code)
    jobs = [*desk.group(put(1), put(2)), *desk.group(put(3))]
    assert [type(job.error) for job in jobs] == [StoreUnavailable] * 3
    assert things(desk) == []
    assert [type(failure) for failure in desk.failures] == [StoreUnavailable]


def test_a_commit_that_fails_otherwise_is_tried_again_one_by_one(
    faulty: tuple[Bench, Callable[..., None]],
) -> None:
    desk, order = faulty
    order(COMMIT=sqlite3.SQLITE_IOERR_WRITE)
    jobs = desk.group(tell("a"), put(2))
    assert [job.error for job in jobs] == [None, None]
    assert logged(desk) == [(1, "a")]
    assert things(desk) == [2]
    assert desk.failures == []


def test_a_unit_whose_rows_cannot_be_written_is_told_why(desk: Bench) -> None:
    """It takes an id for other content that was made in the same unit, where nobody looks for it."""

    def guilty(tx: Transaction) -> None:
        made = tell(data=b"[]")(tx)
        tell(made.event_id)(tx)

    assert isinstance(in_between(desk, guilty).error, sqlite3.IntegrityError)


def test_where_even_the_rollback_fails_nothing_more_is_written(
    faulty: tuple[Bench, Callable[..., None]],
) -> None:
    desk, order = faulty
    order(COMMIT=sqlite3.SQLITE_IOERR_WRITE, ROLLBACK=sqlite3.SQLITE_IOERR_READ)
    jobs = [*desk.group(put(1), put(2)), *desk.group(put(3))]
    assert [type(job.error) for job in jobs] == [StoreUnavailable] * 3
    assert [type(failure) for failure in desk.failures] == [StoreUnavailable]


def test_what_could_not_be_rolled_back_is_not_taken_for_the_end_of_the_log(
    faulty: tuple[Bench, Callable[..., None]],
) -> None:
    desk, order = faulty
    desk.group(tell("a"))
    order(COMMIT=sqlite3.SQLITE_IOERR_WRITE, ROLLBACK=sqlite3.SQLITE_IOERR_READ)
    desk.group(tell("b"), tell("c"))
    assert [type(failure) for failure in desk.failures] == [StoreUnavailable]
    assert desk.writer.head == 1


def test_where_a_group_that_is_to_run_again_cannot_be_rolled_back_nothing_more_is_written(
    faulty: tuple[Bench, Callable[..., None]],
) -> None:
    desk, order = faulty
    order(ROLLBACK=sqlite3.SQLITE_IOERR_READ)
    jobs = [*desk.group(put(1), raising(ValueError())), *desk.group(put(3))]
    assert [type(job.error) for job in jobs] == [StoreUnavailable] * 3
    assert [type(failure) for failure in desk.failures] == [StoreUnavailable]


@pytest.mark.parametrize(
    ("faults", "goes_on"),
    [
        ((_NOTE_INDEXED,), True),
        ((_NOTE_INDEXED, "ROLLBACK"), False),
        (("PRAGMA synchronous = FULL",), False),
        (("PRAGMA synchronous = FULL", "PRAGMA synchronous"), False),
    ],
    ids=["the slice", "its rollback", "the way back to syncing", "and nobody can tell"],
)
def test_an_index_that_cannot_be_written_leaves_the_writer_as_it_was_or_at_its_end(
    faulty: tuple[Bench, Callable[..., None]],
    monkeypatch: pytest.MonkeyPatch,
    faults: tuple[str, ...],
    goes_on: bool,
) -> None:
    monkeypatch.setattr(log_index, "OVERDUE", 1)
    desk, _ = faulty
    assert isinstance(desk.connection, Faulty)
    desk.connection.faults = dict.fromkeys(faults, sqlite3.SQLITE_IOERR_WRITE)
    assert [job.error for job in desk.group(tell("a"))] == [None]  # the slice follows it
    (job,) = desk.group(tell("b"))
    assert (job.error is None, desk.failures == []) == (goes_on, goes_on)
    assert desk.connection.faults == {}


def test_a_checkpoint_that_cannot_sync_is_reported(faulty: tuple[Bench, Callable[..., None]]) -> None:
    desk, order = faulty
    desk.group(put(1))
    order(**{"PRAGMA_wal_checkpoint(PASSIVE)": 0})
    assert isinstance(desk.connection, Faulty)
    desk.connection.faults = {"PRAGMA wal_checkpoint(PASSIVE)": sqlite3.SQLITE_IOERR_FSYNC}
    desk.writer.stop()
    desk.writer.join(timeout=30)
    assert [type(failure) for failure in desk.failures] == [StoreUnavailable]


def test_a_transaction_that_cannot_begin_is_nobodys_fault_and_tried_once(tmp_path: Path) -> None:
    with bench(tmp_path) as desk:
        other = sqlite3.connect(tmp_path / "ksi.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        ran: list[str] = []
        desk.connection.set_trace_callback(ran.append)
        jobs = desk.group(put(1), put(2), put(3))
        other.execute("ROLLBACK")
        other.close()
        assert [type(job.error) for job in jobs] == [StoreUnavailable] * 3
        assert ran == ["BEGIN IMMEDIATE"]
        assert [job.error for job in desk.group(put(1))] == [None]


def test_the_writer_goes_on_where_its_wal_cannot_be_looked_at(tmp_path: Path) -> None:
    with bench(tmp_path) as desk:
        desk.writer._wal = WalFile(tmp_path / "nowhere")
        assert [desk.group(put(n))[0].error for n in range(3)] == [None] * 3


def test_the_wal_is_checkpointed_once_in_an_idle_moment(desk: Bench) -> None:
    ran: SimpleQueue[str] = SimpleQueue()
    desk.connection.set_trace_callback(ran.put)
    desk.group(put(1))
    statements = [ran.get(timeout=30) for _ in range(4)]
    assert statements[-2:] == ["COMMIT", "PRAGMA wal_checkpoint(PASSIVE)"]
    desk.group(put(2))
    assert ran.get(timeout=30) == "BEGIN IMMEDIATE"


async def test_the_wal_is_checkpointed_at_the_end(tmp_path: Path) -> None:
    with bench(tmp_path) as desk:
        desk.group(put(1))
    async with AsyncSQLiteDB(tmp_path / "ksi.db") as db:
        (row,) = await db.fetch("PRAGMA wal_checkpoint(PASSIVE)")
        assert row[1] == row[2]


def test_a_large_wal_is_emptied_by_force_but_not_at_each_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FORCED_CHECKPOINT_BYTES", 100_000)
    clock = FakeClock()
    wal = tmp_path / "ksi.db-wal"

    def size_after(desk: Bench, unit: Unit[Any]) -> int:
        """Give the size of the WAL after the unit and what the writer does then, before the next one."""
        desk.group(unit)
        desk.group(lambda tx: None)
        return wal.stat().st_size

    def large(tx: Transaction) -> None:
        tx.execute("INSERT INTO things VALUES (randomblob(200000))")

    with bench(tmp_path, clock=clock) as desk:
        sizes = [size_after(desk, unit) for unit in (large, large, lambda tx: clock.advance(1.5))]
        assert [size > 200_000 for size in sizes] == [False, True, False]
