"""Bytes for many sockets: they arrive whole, once, and nothing is left open."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ksi_daemon.shared_bytes import WORTHWHILE, SharedBytes

DATA = os.urandom(3 * WORTHWHILE)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def received(theirs: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += theirs.recv(count - len(got))
    return got


def open_files() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir() if path.is_symlink()}


def test_every_socket_gets_the_bytes() -> None:
    pairs = [socket.socketpair() for _ in range(20)]
    with closing(SharedBytes()) as shared:
        sent = [shared.send(DATA, ours.fileno()) for ours, _ in pairs]
    assert sent == [len(DATA)] * 20
    assert all(received(theirs, len(DATA)) == DATA for _, theirs in pairs)  # though its file is gone
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_what_is_sent_between_does_not_change_what_was_sent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    for part in (DATA, DATA[::-1]):
        with closing(SharedBytes()) as shared:
            assert shared.send(part, ours.fileno()) == len(part)
    assert received(theirs, 2 * len(DATA)) == DATA + DATA[::-1]


def test_a_socket_that_is_full_takes_a_part_and_then_nothing(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    much = os.urandom(4 * 1024 * 1024)
    with closing(SharedBytes()) as shared:
        taken = shared.send(much, ours.fileno())
        assert 0 < taken < len(much)
        assert shared.send(much, ours.fileno()) == 0
    assert received(theirs, taken) == much[:taken]


def test_a_socket_that_is_gone_takes_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    with closing(SharedBytes()) as shared:
        assert shared.send(DATA, ours.fileno()) == 0


def test_few_bytes_are_not_worth_it(pair: tuple[socket.socket, socket.socket]) -> None:
    with closing(SharedBytes()) as shared:
        assert shared.send(DATA[: WORTHWHILE - 1], pair[0].fileno()) == 0


def test_nothing_stays_open(pair: tuple[socket.socket, socket.socket]) -> None:
    before = open_files()
    with closing(SharedBytes()) as shared:
        shared.send(DATA, pair[0].fileno())
        shared.send(DATA, pair[0].fileno())  # the same bytes: the same file
        assert len(open_files()) == len(before) + 1
    assert open_files() == before


@pytest.mark.parametrize("missing", ["memfd_create", "write"])
def test_a_system_without_files_in_memory_writes_as_ever(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, missing, refuse)
    with closing(SharedBytes()) as shared:
        assert shared.send(DATA, pair[0].fileno()) == 0
