"""A connection, whatever its transport does in the same turn of the loop."""

import asyncio
import socket
from pathlib import Path

from ksi_common.clock import SystemClock
from ksi_common.envelope import EventEnvelope
from ksi_common.messages import Message, Stream, spec_of
from ksi_daemon.connection_limits import ConnectionLimits
from ksi_daemon.outcomes import Ended, Send
from ksi_daemon.router import Route
from ksi_daemon.transports.unix import UnixServer


class Word(Message):
    text: str


class Follow(Stream[Word], event="demo:follow", safe=True):
    """Follow what is said."""


async def dispatch(envelope: EventEnvelope, send: Send) -> None:
    del envelope
    await send(Ended())


def crashed(error: Exception) -> None:
    raise AssertionError from error


async def test_a_client_that_goes_before_its_stream_has_begun_is_forgotten() -> None:
    server = UnixServer(
        Path("/nowhere/ksi.sock"),
        dispatch=dispatch,
        direct=None,
        routes={"demo:follow": Route(spec_of(Follow), Follow, "demo", dispatch)},
        clock=SystemClock(),
        limits=ConnectionLimits(),
        max_connections=4,
        crashed=crashed,
    )
    ours, theirs = socket.socketpair()
    with theirs:
        transport, connection = await asyncio.get_running_loop().connect_accepted_socket(server.gate, ours)
        assert server.connections == {connection}
        connection.data_received(b'{"event":"demo:follow"}\n{"event":"demo:follow"}\n')
        connection.connection_lost(None)  # as where a write in between finds the client gone
        assert not server.connections
        transport.abort()
        await asyncio.sleep(0)  # for the transport to close its socket
