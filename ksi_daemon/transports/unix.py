"""The Unix socket: only the owner gets in, and nobody's live socket is taken."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

import structlog

from ksi_common.clock import Clock
from ksi_common.errors import FailedPrecondition, PermissionDenied, ResourceExhausted
from ksi_daemon.connection import Connection
from ksi_daemon.connection_limits import ConnectionLimits
from ksi_daemon.middleware.direct import Direct
from ksi_daemon.outcomes import Endpoint
from ksi_daemon.router import Route

log = structlog.get_logger()

BACKLOG: Final = 1024
"""With asyncio's 100, a burst of connects fails: a Unix connect does not wait for the queue."""
_CLOSE_S: Final = 1.0
_UCRED: Final = struct.Struct("3i")


class UnixServer:
    """Serve clients of one socket. The lock of the home must be held: what is at the path is stale."""

    def __init__(
        self,
        path: Path,
        *,
        dispatch: Endpoint,
        direct: Direct | None,
        routes: Mapping[str, Route],
        clock: Clock,
        limits: ConnectionLimits,
        max_connections: int,
        crashed: Callable[[Exception], None],
    ) -> None:
        self.path = path
        self.dispatch = dispatch
        self.direct = direct
        self.routes = routes
        self.clock = clock
        self.limits = limits
        self.closing = False
        self.connections: set[Connection] = set()
        self._max_connections = max_connections
        self._crashed = crashed
        self._progress = asyncio.Event()
        self._unflushed: list[Connection] = []
        self._server: asyncio.AbstractServer | None = None

    async def __aenter__(self) -> Self:
        listener = _listen(self.path)
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_unix_server(self._connected, sock=listener, backlog=BACKLOG)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()
        for connection in tuple(self.connections):
            connection.abort()

    async def drain(self, grace_s: float) -> int:
        """Take no new work, let running requests end within ``grace_s``, close; give how many did not."""
        self._stop_listening()
        self.closing = True
        await self._wait_until(lambda: self._busy() == 0, grace_s)
        busy = self._busy()
        for connection in tuple(self.connections):
            connection.end()
        if not await self._wait_until(lambda: not self.connections, _CLOSE_S):
            log.warning("connection.cut", connections=len(self.connections), reason="shutdown")
        return busy

    def crashed(self, error: BaseException) -> None:
        """End the daemon with ``error``."""
        self._crashed(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def closed(self, connection: Connection) -> None:
        """Forget a client that is gone."""
        self.connections.discard(connection)
        self._progress.set()

    def flush_later(self, connection: Connection) -> None:
        """Flush at the end of this turn: one callback of the loop for all connections that have frames."""
        if not self._unflushed:
            self._loop.call_soon(self._flush)
        self._unflushed.append(connection)

    def progressed(self) -> None:
        """Look whether the drain is done: a request has ended."""
        self._progress.set()

    async def _wait_until(self, done: Callable[[], bool], limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                while not done():
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    def _flush(self) -> None:
        unflushed, self._unflushed = self._unflushed, []
        for connection in unflushed:
            connection.flush()

    def _busy(self) -> int:
        return sum(connection.busy for connection in self.connections)

    def gate(self) -> Connection:
        """Make a connection that comes by another way than the socket, as its protocol."""
        return _Let(self, self._max_connections)

    def _connected(self) -> Connection:
        return _Admitted(self, self._max_connections)

    def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self.path.unlink(missing_ok=True)


class _Let(Connection):
    """A connection that is let in where there is room; who it is was found out on its way."""

    def __init__(self, server: UnixServer, limit: int) -> None:
        super().__init__(server)
        self._unix = server
        self._limit = limit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the client in, or say why not."""
        super().connection_made(transport)
        self._unix.connections.add(self)
        refusal = self._refusal_of(transport)
        if refusal is not None:
            self.refuse(refusal)
        elif len(self._unix.connections) > self._limit:
            full = f"the daemon has {self._limit} connections, as many as it takes"
            self.refuse(ResourceExhausted(full, reason="connections", retry_after_s=1))

    def _refusal_of(self, transport: asyncio.BaseTransport) -> PermissionDenied | None:
        del transport
        return None


class _Admitted(_Let):
    """A connection of the socket: its peer must be the owner."""

    def _refusal_of(self, transport: asyncio.BaseTransport) -> PermissionDenied | None:
        sock = transport.get_extra_info("socket")
        uid = peer_uid(sock)
        if uid == os.getuid():
            self.plain_socket = sock.fileno()
            return None
        log.warning("connection.refused", uid=uid)
        return PermissionDenied(f"this daemon belongs to uid {os.getuid()}, not {uid}")


def peer_uid(sock: socket.socket) -> int:
    """Give the user at the other end, as the kernel knows it."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])


def _listen(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot use {path.parent}: {error.strerror}", hint="set KSI_HOME or KSI_SOCKET"
        ) from error
    owner = path.parent.stat().st_uid
    if owner != os.getuid():
        raise PermissionDenied(f"{path.parent} belongs to uid {owner}", hint="set KSI_HOME or KSI_SOCKET")
    if path.is_socket():
        path.unlink()
    elif path.exists() or path.is_symlink():
        raise FailedPrecondition(f"{path} exists and is no socket", hint="move it away")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    except OSError as error:
        listener.close()
        raise FailedPrecondition(f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    listener.setblocking(False)  # noqa: FBT003 -- its signature
    return listener
