"""What is pushed to a client past its transport goes to that client, or to nobody."""

import asyncio
import os
import socket
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from ksi_common.clock import SystemClock
from ksi_common.envelope import EventEnvelope
from ksi_daemon.connection import Connection
from ksi_daemon.connection_limits import ConnectionLimits
from ksi_daemon.outcomes import Send
from ksi_daemon.shared_bytes import WORTHWHILE, SharedBytes
from ksi_daemon.transports.unix import UnixServer
from tests.support.waiting import eventually

LINES = os.urandom(2 * WORTHWHILE)
MUCH = os.urandom(8 * 1024 * 1024)
"""More than a socket takes."""


async def dispatch(envelope: EventEnvelope, send: Send) -> None:
    raise AssertionError(f"nobody asks for {envelope.event}", send)


def crashed(error: Exception) -> None:
    raise AssertionError from error


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Connection, asyncio.StreamReader]]:
    """Give a connection as the daemon has it, and what its client reads."""
    folder = tempfile.TemporaryDirectory(prefix="ksi")  # a socket's path is short
    server = UnixServer(
        Path(folder.name) / "ksi.sock",
        dispatch=dispatch,
        direct=None,
        routes={},
        clock=SystemClock(),
        limits=ConnectionLimits(),
        max_connections=4,
        crashed=crashed,
    )

    async def accepted() -> bool:
        return bool(server.connections)

    with folder:
        async with server:
            reader, writer = await asyncio.open_unix_connection(server.path)
            await eventually(accepted)
            (connection,) = server.connections
            try:
                yield connection, reader
            finally:
                writer.close()


@contextmanager
def sharing(lines: bytes) -> Iterator[SharedBytes]:
    """Give shared bytes of which another client has had ``lines``: whoever comes now is not the first."""
    with closing(SharedBytes()) as shared:
        assert shared.send(lines, -1) == 0
        yield shared


async def test_shared_bytes_and_lines_arrive_in_order() -> None:
    async with connected() as (connection, reader):
        with sharing(LINES) as shared:
            connection.push(LINES, shared)
            connection.push(b"and then\n", None)
            connection.push(LINES, shared)
        assert await reader.readexactly(2 * len(LINES) + 9) == LINES + b"and then\n" + LINES


async def test_what_a_socket_does_not_take_is_no_copy_of_its_own() -> None:
    """Many clients that read slowly wait for the same bytes."""
    async with connected() as (connection, reader):
        with sharing(MUCH) as shared:
            tracemalloc.start()
            try:
                connection.push(MUCH, shared)
                _, most = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            connection.push(b"and then\n", shared)
        assert most < len(MUCH) // 4
        assert await reader.readexactly(len(MUCH) + 9) == MUCH + b"and then\n"


async def test_nothing_is_pushed_once_the_connection_is_cut() -> None:
    async with connected() as (connection, _):
        connection.abort()
        ours, theirs = socket.socketpair()  # of a client that came in the same turn
        with ours, theirs, sharing(LINES) as shared:
            ours.setblocking(False)
            theirs.setblocking(False)
            connection.plain_socket = ours.fileno()  # the kernel gives numbers away again
            connection.push(LINES, shared)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)
