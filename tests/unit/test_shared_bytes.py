"""Bytes for many sockets: they arrive whole, once, and nothing is left open."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ksi_daemon.shared_bytes import MAX_FILES, WORTHWHILE, SharedBytes

DATA = os.urandom(3 * WORTHWHILE)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@contextmanager
def sharing(*parts: bytes) -> Iterator[SharedBytes]:
    """Give shared bytes of which another socket has had ``parts``: whoever comes now is not the first."""
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(SharedBytes()) as shared:
        assert [shared.send(part, ours.fileno()) for part in parts] == [0] * len(parts)
        yield shared


def received(theirs: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += theirs.recv(count - len(got))
    return got


def open_files() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir() if path.is_symlink()}


def test_every_socket_gets_the_bytes() -> None:
    pairs = [socket.socketpair() for _ in range(20)]
    with sharing(DATA) as shared:
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
        with sharing(part) as shared:
            assert shared.send(part, ours.fileno()) == len(part)
    assert received(theirs, 2 * len(DATA)) == DATA + DATA[::-1]


def test_a_socket_that_is_full_takes_a_part_and_then_nothing(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    much = os.urandom(4 * 1024 * 1024)
    with sharing(much) as shared:
        taken = shared.send(much, ours.fileno())
        assert 0 < taken < len(much)
        assert shared.send(much, ours.fileno()) == 0
    assert received(theirs, taken) == much[:taken]


def test_a_socket_that_is_gone_takes_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    with sharing(DATA) as shared:
        assert shared.send(DATA, ours.fileno()) == 0


def test_few_bytes_are_not_worth_it(pair: tuple[socket.socket, socket.socket]) -> None:
    few = DATA[: WORTHWHILE - 1]
    with sharing(few) as shared:
        assert shared.send(few, pair[0].fileno()) == 0


def test_what_only_one_gets_opens_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    """Each subscriber may have an id of its own, and so bytes of its own."""
    before = open_files()
    with closing(SharedBytes()) as shared:
        assert shared.send(DATA, pair[0].fileno()) == 0
        assert open_files() == before


def test_few_files_are_open_however_many_bytes_are_shared(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    parts = [b"%d%b" % (number, DATA[:WORTHWHILE]) for number in range(3 * MAX_FILES)]
    ours, theirs = pair
    before = open_files()
    with sharing(*parts) as shared:
        for number, part in enumerate(parts):
            taken = shared.send(part, ours.fileno())
            assert taken == (len(part) if number < MAX_FILES else 0)
            assert received(theirs, taken) == part[:taken]
        assert len(open_files() - before) <= MAX_FILES + 2  # and the two sockets
    assert open_files() == before


def test_nothing_stays_open(pair: tuple[socket.socket, socket.socket]) -> None:
    before = open_files()
    with closing(SharedBytes()) as shared:
        for _ in range(3):
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
    with sharing(DATA) as shared:
        assert shared.send(DATA, pair[0].fileno()) == 0
