"""The end of the log: gapless numbers, versions by stream, ids once, a chain that can be verified."""

import sqlite3  # noqa: TID251 -- the log writer is given its connection
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from ksi_common.envelope import StoredEvent
from ksi_common.errors import AlreadyExists, FailedPrecondition
from ksi_daemon.database.log_writer import (
    CLAIM_CHECKED,
    EMPTY_CHAIN,
    READ,
    ExpectedVersion,
    LogWriter,
    digest_of,
    from_row,
    reference_to,
)
from ksi_daemon.database.migrations import CORE, migrate, scripts


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(":memory:", isolation_level=None)
    migrate(made, CORE, scripts("ksi_daemon.database"), backups=tmp_path)
    yield made
    made.close()


@pytest.fixture
def log(connection: sqlite3.Connection) -> LogWriter:
    return LogWriter(connection)


def event(event_id: str, /, **facts: object) -> StoredEvent:
    told = StoredEvent("demo:told", b'{"n":1}', event_id, "c", "d", "owner", 2, 7)
    return replace(told, **facts)  # type: ignore[arg-type]  # whatever the test says


def append(log: LogWriter, event_id: str, stream: str | None = None, *, named: bool = False) -> StoredEvent:
    told = event(event_id, stream=stream)
    if stream is not None:
        told.version = log.next_version(stream, "any")
    log.append(told, named=named)
    return told


def commit(log: LogWriter) -> None:
    log.flush()
    log.committed()


def stored(connection: sqlite3.Connection) -> list[StoredEvent]:
    return [from_row(row) for row in connection.execute(f"SELECT {READ} FROM log ORDER BY seq")]


def test_an_event_is_read_back_as_it_was_told(log: LogWriter, connection: sqlite3.Connection) -> None:
    told = append(log, "a", "s/1")
    commit(log)
    (read,) = stored(connection)
    for name in StoredEvent.__slots__:
        assert getattr(read, name) == getattr(told, name)


def test_of_a_request_there_is_its_digest_and_not_its_data(
    log: LogWriter, connection: sqlite3.Connection
) -> None:
    asked = event("a", kind="request")
    log.append(asked)
    commit(log)
    data, digest = connection.execute("SELECT data, digest FROM log").fetchone()
    assert data is None
    assert digest == digest_of(asked)
    assert stored(connection)[0].kind == "request"


@pytest.mark.parametrize("count", [0, 1, 3, 4, 21, 64, 85, 150])
def test_any_number_of_rows_is_flushed(log: LogWriter, connection: sqlite3.Connection, count: int) -> None:
    for n in range(count):
        append(log, f"{n:03}")
    commit(log)
    assert [told.event_id for told in stored(connection)] == [f"{n:03}" for n in range(count)]
    assert [told.seq for told in stored(connection)] == list(range(1, count + 1))
    log.flush()
    assert len(stored(connection)) == count


def test_the_chain_is_the_hash_of_the_chain_before_seq_and_digest(
    log: LogWriter, connection: sqlite3.Connection
) -> None:
    for name in "abc":
        append(log, name)
    commit(log)
    chain = EMPTY_CHAIN
    for seq, digest, stored_chain in connection.execute("SELECT seq, digest, chain FROM log ORDER BY seq"):
        chain = sha256(chain + seq.to_bytes(8) + digest).digest()
        assert stored_chain == chain
    assert log.chain == chain
    assert LogWriter(connection).chain == chain
    assert LogWriter(connection).seq == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"event": "demo:other"},
        {"data": b'{"n":2}'},
        {"event_id": "b"},
        {"hop": 3},
        {"correlation_id": "x"},
        {"causation_id": None},
        {"actor": "x"},
        {"time_us": 8},
        {"kind": "request"},
        {"stream": "s"},
        {"version": 1},
    ],
)
def test_the_digest_covers_everything_that_an_event_says(changed: dict[str, object]) -> None:
    assert digest_of(event("a")) != digest_of(event("a", **changed))


def test_versions_of_a_stream_are_1_2_3(log: LogWriter) -> None:
    versions = [append(log, name, stream).version for name, stream in [("a", "s"), ("b", "t"), ("c", "s")]]
    assert versions == [1, 1, 2]
    assert (log.version("s"), log.version("t"), log.version("u")) == (2, 1, 0)


def test_versions_are_known_after_a_restart(log: LogWriter, connection: sqlite3.Connection) -> None:
    append(log, "a", "s")
    commit(log)
    assert LogWriter(connection).next_version("s", 1) == 2


@pytest.mark.parametrize(
    ("before", "expected", "fits"),
    [
        (0, "any", True),
        (2, "any", True),
        (0, "none", True),
        (2, "none", False),
        (0, "exists", False),
        (2, "exists", True),
        (0, 0, True),
        (2, 0, False),
        (2, 2, True),
        (2, 1, False),
        (2, 3, False),
    ],
)
def test_the_expected_version_is_checked(
    log: LogWriter, before: int, expected: ExpectedVersion, fits: bool
) -> None:
    for n in range(before):
        append(log, str(n), "s")
    if fits:
        assert log.next_version("s", expected) == before + 1
        return
    with pytest.raises(FailedPrecondition) as refused:
        log.next_version("s", expected)
    assert refused.value.details == {"reason": "wrong_version", "expected": expected, "actual": before}
    assert refused.value.message == f"stream 's' is at version {before}, not {expected}"
    assert log.version("s") == before


@pytest.mark.parametrize("flushed", [False, True])
def test_the_same_event_again_is_the_one_that_is_stored(log: LogWriter, flushed: bool) -> None:
    first = append(log, "a", named=True)
    if flushed:
        commit(log)
    known = log.find(event("a"))
    assert known is not None
    assert known.seq == first.seq
    assert log.find(event("b")) is None


@pytest.mark.parametrize("changed", [{"event": "demo:other"}, {"data": b"{}"}, {"stream": "s"}])
@pytest.mark.parametrize("flushed", [False, True])
def test_an_id_with_other_content_is_refused(
    log: LogWriter, flushed: bool, changed: dict[str, object]
) -> None:
    append(log, "a", named=True)
    if flushed:
        commit(log)
    with pytest.raises(AlreadyExists, match="event id 'a' is taken") as refused:
        log.find(event("a", **changed))
    assert refused.value.details["reason"] == "id_reused"


@pytest.mark.parametrize("reference", ['{"path":null}', None, '{"len'], ids=["imported", "none", "damaged"])
def test_an_event_whose_data_is_gone_is_known_by_its_digest(
    log: LogWriter, connection: sqlite3.Connection, reference: str | None
) -> None:
    append(log, "a", named=True)
    commit(log)
    connection.execute("UPDATE log SET data = NULL, reference = ?", (reference,))
    known = log.find(event("a"))
    assert known is not None
    assert known.seq == 1
    with pytest.raises(AlreadyExists, match="event id 'a' is taken"):
        log.find(event("a", data=b"{}"))


def test_what_is_taken_back_leaves_no_trace(log: LogWriter, connection: sqlite3.Connection) -> None:
    log.mark()
    append(log, "a", "s", named=True)
    mark = log.mark()
    before = (log.seq, log.chain)
    for name, stream in [("b", "s"), ("c", "new"), ("d", "s")]:
        append(log, name, stream, named=True)
    log.take_back(mark)
    assert (log.seq, log.chain) == before
    assert (log.version("s"), log.version("new")) == (1, 0)
    assert log.find(event("b")) is None
    append(log, "e", "s")
    commit(log)
    assert [(told.event_id, told.seq, told.version) for told in stored(connection)] == [
        ("a", 1, 1),
        ("e", 2, 2),
    ]


def test_a_version_that_was_taken_and_not_used_is_taken_back(log: LogWriter) -> None:
    mark = log.mark()
    log.next_version("s", "none")
    log.take_back(mark)
    assert log.next_version("s", "none") == 1


@pytest.mark.parametrize("facts", [{"actor": "\ud800"}, {"data": b'"\xff"'}])
def test_an_event_that_cannot_be_stored_leaves_no_trace(log: LogWriter, facts: dict[str, object]) -> None:
    mark = log.mark()
    with pytest.raises((TypeError, UnicodeDecodeError), match=r"surrogates|invalid start byte"):
        log.append(event("a", **facts), named=True)
    log.take_back(mark)
    assert (log.seq, log.chain) == (0, EMPTY_CHAIN)
    assert log.find(event("a")) is None


def test_what_the_transaction_lost_is_forgotten(log: LogWriter, connection: sqlite3.Connection) -> None:
    append(log, "a", "s", named=True)
    commit(log)
    append(log, "b", "s", named=True)
    log.lost()
    assert (log.seq, log.version("s")) == (1, 1)
    assert log.find(event("b")) is None
    log.flush()
    assert [told.event_id for told in stored(connection)] == ["a"]


def test_an_empty_log_that_lost_everything_starts_at_nothing(log: LogWriter) -> None:
    append(log, "a")
    log.lost()
    assert (log.seq, log.chain) == (0, EMPTY_CHAIN)


def test_known_streams_have_a_bound(log: LogWriter) -> None:
    for n in range(10_001):
        log.next_version(f"s{n}", "any")
    log.committed()
    assert log._versions == {}
    assert log.version("s1") == 0


def test_data_that_is_taken_back_is_not_that_of_the_event_with_its_number(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    kept, lost = (b'"%b"' % (letter * CLAIM_CHECKED) for letter in (b"k", b"l"))
    log = LogWriter(connection, tmp_path)
    log.append(event("kept", data=kept))
    mark = log.mark()
    log.append(event("lost", data=lost))
    log.take_back(mark)
    append(log, "next")
    commit(log)
    rows = connection.execute("SELECT event_id, nullif(data, ''), reference FROM log ORDER BY seq").fetchall()
    assert rows == [("kept", None, reference_to(kept)), ("next", '{"n":1}', None)]
