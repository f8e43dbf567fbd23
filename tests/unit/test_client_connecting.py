"""Who listens at the socket, what a refusal means, when to try again."""

import errno
import os
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksi_client.connecting import Attempts, connect, socket_path
from ksi_common.errors import FailedPrecondition, PermissionDenied, Unavailable
from tests.unit.test_client_fake import socket_folder


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_folder() as folder:
        yield folder


@pytest.fixture
def listener(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "d.sock"))
        listener.listen(0)
        yield listener


def refusal(path: Path) -> tuple[str, bool]:
    with pytest.raises(Unavailable) as caught:
        connect(path)
    return caught.value.details["reason"], caught.value.retryable


def test_a_daemon_of_this_user_is_connected_to(folder: Path, listener: socket.socket) -> None:
    with connect(folder / "d.sock") as sock:
        assert not sock.getblocking()


def test_a_daemon_of_another_user_is_refused(folder: Path, listener: socket.socket) -> None:
    with pytest.raises(PermissionDenied) as caught:
        connect(folder / "d.sock", owner=os.geteuid() + 1)
    assert caught.value.details["reason"] == "foreign_server"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_socket_that_another_user_listens_on_is_refused(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(folder / "d.sock"))
        os.seteuid(65534)
        try:
            foreign.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(PermissionDenied, match="belongs to uid 65534, not to 0"):
            connect(folder / "d.sock")


def test_no_socket_means_that_no_daemon_runs(folder: Path) -> None:
    assert refusal(folder / "none.sock") == ("daemon_not_running", True)


def test_a_socket_that_nobody_listens_on_means_that_no_daemon_runs(
    folder: Path, listener: socket.socket
) -> None:
    listener.close()
    assert stat.S_ISSOCK((folder / "d.sock").stat().st_mode)
    assert refusal(folder / "d.sock") == ("daemon_not_running", True)


def test_a_full_backlog_means_that_the_daemon_is_busy(folder: Path, listener: socket.socket) -> None:
    with connect(folder / "d.sock"):
        assert refusal(folder / "d.sock") == ("busy", True)


def test_a_file_that_is_no_socket_is_not_tried_again(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(Unavailable) as caught:
        connect(folder / "file" / "d.sock")
    assert not caught.value.retryable
    assert caught.value.__cause__ is not None
    assert getattr(caught.value.__cause__, "errno", None) == errno.ENOTDIR
    assert caught.value.hint == "set KSI_SOCKET or KSI_HOME to your own daemon"


def test_a_folder_in_the_place_of_a_socket_is_said_to_be_none(folder: Path) -> None:
    with pytest.raises(Unavailable, match=f"KSI is not running: {folder} is no socket") as caught:
        connect(folder)
    assert caught.value.hint == "set KSI_SOCKET or KSI_HOME to your own daemon"


def test_a_path_that_is_too_long_is_measured(folder: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"the socket path has 2\d\d bytes; the system allows 107"):
        connect(folder / ("x" * 200))


def test_the_socket_named_is_meant_and_else_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("KSI_HOME", str(folder))
    monkeypatch.delenv("KSI_SOCKET", raising=False)
    assert socket_path("/run/named") == Path("/run/named")
    assert socket_path() == folder / "run" / "daemon.sock"
    monkeypatch.setenv("KSI_SOCKET", "/run/other")
    assert socket_path() == Path("/run/other")


def gone() -> Unavailable:
    return Unavailable("gone", reason="daemon_not_running")


def test_delays_grow_from_50_ms_to_2_s() -> None:
    attempts = Attempts(None, clock=Clock(), draw=lambda: 1.0)
    delays = [attempts.delay() for _ in range(9)]
    assert delays == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_delays_are_drawn_from_the_whole_range() -> None:
    attempts = Attempts(None, clock=Clock(), draw=lambda: 0.0)
    assert [attempts.delay() for _ in range(3)] == [0.0, 0.0, 0.0]


def test_attempts_end_when_the_time_has_passed() -> None:
    clock = Clock()
    attempts = Attempts(10.0, clock=clock)
    attempts.delay()
    attempts.failed(gone())
    clock.now += 10
    with pytest.raises(Unavailable):
        attempts.failed(gone())
    attempts.delay()
    attempts.failed(gone())


def test_attempts_never_end_where_no_time_is_set() -> None:
    clock = Clock()
    attempts = Attempts(None, clock=clock)
    attempts.delay()
    clock.now += 1e9
    attempts.failed(gone())


def test_a_busy_daemon_is_tried_for_two_seconds_at_least() -> None:
    clock = Clock()
    attempts = Attempts(0.0, clock=clock)
    attempts.delay()
    attempts.failed(Unavailable("busy", reason="busy"))
    clock.now += 2
    with pytest.raises(Unavailable):
        attempts.failed(Unavailable("busy", reason="busy"))


def test_what_is_not_passing_is_not_tried_again() -> None:
    attempts = Attempts(None, clock=Clock())
    with pytest.raises(PermissionDenied):
        attempts.failed(PermissionDenied("not you"))


def test_connections_that_were_of_no_use_count_as_failures() -> None:
    clock = Clock()
    attempts = Attempts(10.0, clock=clock, draw=lambda: 1.0)
    for _ in range(3):
        attempts.delay()
        attempts.connected()
        attempts.lost(heard=False)
    assert attempts.delay() == 0.2
    attempts.lost(heard=True)
    assert attempts.delay() == 0.0


def test_a_connection_that_lasted_was_of_use() -> None:
    clock = Clock()
    attempts = Attempts(10.0, clock=clock)
    attempts.delay()
    attempts.connected()
    clock.now += 3600
    attempts.lost(heard=False)
    assert attempts.delay() == 0.0


def test_a_process_that_has_no_descriptor_left_cannot_connect(folder: Path) -> None:
    """It was an OSError that nobody expects: a client that made its connection again ended its program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(Unavailable, match="Too many open files"):
            connect(folder / "d.sock")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
