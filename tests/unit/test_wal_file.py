"""The log's file is made long once, in an idle moment, and told of when that was not enough."""

import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest

from ksi_daemon.database import wal, writer
from ksi_daemon.database.transaction import Transaction, Unit
from ksi_daemon.database.wal import WalFile
from ksi_daemon.testing import FakeClock
from tests.support.databases import bench, put, rows

_Usage = namedtuple("_Usage", "total used free")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wal, "EXTENT", 100_000)
    written = tmp_path / "a-wal"
    written.write_bytes(b"frames")
    return written


@pytest.fixture
def log(path: Path) -> Iterator[WalFile]:
    with closing(WalFile(path)) as log:
        yield log


def extend(path: Path) -> None:
    with closing(WalFile(path)) as log:
        log.extend()


def test_the_file_is_filled_with_zeros_behind_what_is_written(path: Path) -> None:
    extend(path)
    assert path.read_bytes() == b"frames".ljust(100_000, b"\0")


def test_a_file_that_is_long_enough_is_left_alone(path: Path) -> None:
    path.write_bytes(b"x" * 100_001)
    extend(path)
    assert path.read_bytes() == b"x" * 100_001


def test_a_log_that_was_never_written_is_not_made(tmp_path: Path) -> None:
    extend(tmp_path / "a-wal")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_with_little_room_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10**9, 0, 16 * 100_000 - 1))
    extend(path)
    assert path.read_bytes() == b"frames"


def test_a_file_that_refuses_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> _Usage:
        raise OSError("no")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    extend(path)
    assert path.read_bytes() == b"frames"


def test_growth_beyond_the_extent_is_told_once(path: Path, log: WalFile) -> None:
    assert not log.has_grown()
    log.extend()
    assert not log.has_grown()
    with path.open("ab") as file:
        file.write(b"more")
    assert log.has_grown()
    assert not log.has_grown()


def test_a_file_that_is_not_there_yet_has_no_size_and_did_not_grow(path: Path, log: WalFile) -> None:
    path.unlink()
    assert log.size == 0
    assert not log.has_grown()
    path.write_bytes(b"frames")
    assert log.size == 6


def test_its_times_are_not_looked_at(path: Path, log: WalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    log.extend()

    def look(*_: object, **__: object) -> None:
        raise AssertionError("whoever looks makes the next write change them, and its sync write the inode")

    with monkeypatch.context() as patched:
        for name in ("stat", "fstat", "lstat"):
            patched.setattr(os, name, look)
        assert log.size == 100_000
        assert not log.has_grown()


def test_a_closed_file_is_opened_again_when_it_is_asked_for(path: Path, log: WalFile) -> None:
    assert log.size == 6
    log.close()
    log.close()
    assert log.size == 6


def test_what_is_committed_into_a_long_log_is_read_by_others(tmp_path: Path) -> None:
    with bench(tmp_path) as desk:
        desk.group(put(1))
        extend(tmp_path / "ksi.db-wal")  # as the writer would: it has nothing to do now
        desk.group(put(2))
        assert rows(tmp_path / "ksi.db", "SELECT x FROM things") == [(1,), (2,)]


def test_a_copy_of_a_long_log_is_recovered(tmp_path: Path) -> None:
    """As after a crash: the index of the log is lost, and made anew from a log with zeros behind it."""
    with bench(tmp_path) as desk:
        desk.group(put(1))
        extend(tmp_path / "ksi.db-wal")
        desk.group(put(2))
        copied = tmp_path / "copied"
        copied.mkdir()
        for name in ("ksi.db", "ksi.db-wal"):
            shutil.copy(tmp_path / name, copied)
    assert rows(copied / "ksi.db", "SELECT x FROM things") == [(1,), (2,)]


def test_a_log_that_outgrew_its_extent_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "EXTENT", 200_000)
    log = tmp_path / "ksi.db-wal"
    clock = FakeClock()

    def nothing(tx: Transaction) -> None:
        """Leave only time for a look at the log, after this unit and before the next one."""
        clock.advance(1)

    def insert(size: int) -> Unit[object]:
        return lambda tx: tx.execute(f"INSERT INTO things VALUES (randomblob({size}))")

    with bench(tmp_path, clock=clock) as desk:
        ran: SimpleQueue[str] = SimpleQueue()
        desk.connection.set_trace_callback(ran.put)
        desk.group(put(1))
        while ran.get(timeout=30) != "PRAGMA wal_checkpoint(PASSIVE)":
            pass
        monkeypatch.setattr(writer, "_IDLE_S", 60)
        desk.group(nothing)  # the writer is back from its idle moment
        assert log.stat().st_size == 200_000
        desk.group(insert(300_000))
        grown = log.stat().st_size
        assert grown > 300_000
        desk.group(insert(20_000))
        assert log.stat().st_size > grown, "it was looked at a moment ago"
        desk.group(nothing)
        grown = log.stat().st_size
        desk.group(insert(200_000))
        assert log.stat().st_size == grown
