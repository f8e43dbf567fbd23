"""What a manager hears of the daemon, over the real datagram sockets."""

import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksi_daemon.notify import notify, ready, reloading, stopping, watchdog, watchdog_interval_s


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        yield manager


@pytest.fixture
def managed(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Be managed, by way of an abstract socket."""
    manager.bind("")
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + manager.getsockname()[1:].decode())
    return manager


def test_readiness_carries_a_status(managed: socket.socket) -> None:
    assert ready("serving")
    assert managed.recv(200) == b"READY=1\nSTATUS=serving"


def test_a_socket_with_a_path_is_reached(manager: socket.socket) -> None:
    with tempfile.TemporaryDirectory(prefix="ksi") as folder:
        path = str(Path(folder) / "notify")
        manager.bind(path)
        assert notify("READY=1", environ={"NOTIFY_SOCKET": path})
        assert manager.recv(200) == b"READY=1"


def test_the_other_words_are_those_of_sd_notify(managed: socket.socket) -> None:
    assert (stopping("draining"), watchdog()) == (True, True)
    assert [managed.recv(200), managed.recv(200)] == [b"STOPPING=1\nSTATUS=draining", b"WATCHDOG=1"]


def test_a_reload_says_when_it_began(managed: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    reloading()
    word, _, began = managed.recv(200).decode().partition("\nMONOTONIC_USEC=")
    assert word == "RELOADING=1"
    assert before <= int(began) <= time.monotonic_ns() // 1000


def test_without_a_manager_nothing_is_said() -> None:
    assert not notify("READY=1", environ={})


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert not notify("READY=1", environ={"NOTIFY_SOCKET": str(tmp_path / "gone")})


def test_a_manager_that_does_not_read_is_not_waited_for(managed: socket.socket) -> None:
    said = 0
    while watchdog():
        said += 1
    assert said > 0


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_of_its_patience(
    environ: dict[str, str], interval_s: float | None
) -> None:
    assert watchdog_interval_s(environ) == interval_s


def test_that_no_descriptor_is_left_is_no_error(managed: socket.socket) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert not watchdog()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert watchdog()
