"""Drive a session over asyncio."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ksi_client.connecting import Attempts, connect
from ksi_client.exchanges import Entry, Exchange, Feed
from ksi_client.session import ClientStatistics, Session
from ksi_common.errors import FailedPrecondition, KSIError
from ksi_common.frames import Asked, Revoked


class AsyncLink(asyncio.Protocol):
    """The connection of an AsyncClient, made again by a task of its own whenever it is needed and lost."""

    def __init__(self, path: Path, *, connect_timeout_s: float | None) -> None:
        self._path = path
        self._session = Session()
        self._attempts = Attempts(connect_timeout_s)
        self._transport: asyncio.Transport | None = None
        self._corked = False
        self._is_open = False
        self._keeper: asyncio.Task[None] | None = None
        self._hung_up = asyncio.Event()
        self._wanted = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._waiting = 0
        """Who waits to write, or is about to go on."""

    async def open(self) -> None:
        """Connect now; raises where that fails for ``connect_timeout_s``."""
        if self._is_open:  # a second connection would take the place of the first, which nobody closed
            raise FailedPrecondition("this client is open already", hint="open it once, for all that use it")
        self._loop = asyncio.get_running_loop()
        await self._connect()
        self._is_open = True
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._keeper = self._tasks.create_task(self._keep_connected(), name="ksi_client.keep_connected")

    async def close(self, error: KSIError) -> None:
        """Hang up; what is under way gets ``error``. May be called twice."""
        self._is_open = False
        self._session.fail(error)
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        keeper.cancel()
        try:
            if self._transport is not None:
                self._transport.abort()
                await self._hung_up.wait()
        finally:
            # Never with the exception of the caller's block: a group would wrap it.
            await self._tasks.__aexit__(None, None, None)

    def check_open(self) -> None:
        """Raise FailedPrecondition unless it is open."""
        if not self._is_open:
            raise FailedPrecondition(
                "this client is not open", reason="client_closed", hint="async with AsyncClient() as client"
            )

    def start(self, exchange: Exchange) -> None:
        """Send a request, or hold it back until it can be sent."""
        self.check_open()
        self._session.start(exchange)
        self._wanted.set()
        self._flush()

    def listen(self, asked: Callable[[Asked | Revoked], None] | None) -> None:
        """Hear what the daemon asks of a client that serves; None: hear no more."""
        self._session.asked = asked

    def say(self, line: bytes) -> None:
        """Send a frame that nothing answers."""
        self._session.say(line)
        self._flush()

    @property
    def connections(self) -> int:
        """How many connections were made."""
        return self._session.connections

    def cancel(self, exchange: Exchange) -> None:
        """Stop a request."""
        self._session.cancel(exchange)
        self._flush()

    def cancel_soon(self, exchange: Exchange) -> None:
        """Stop a request, from any thread; does nothing where the loop is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.cancel, exchange)

    def pop(self, feed: Feed) -> Entry | None:
        """Take the oldest entry of a feed."""
        entry = self._session.pop(feed)
        self._flush()
        return entry

    async def wait_writable(self) -> None:
        """Wait while more is unsent than the transport likes; does not suspend otherwise. Keeps the order."""
        if self._writable.is_set():
            if not self._waiting:
                return
            await asyncio.sleep(0)  # who waited is about to go on, and comes first
        self._waiting += 1
        try:
            await self._writable.wait()
        finally:
            self._waiting -= 1

    def statistics(self) -> ClientStatistics:
        """Give figures."""
        return self._session.statistics()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin on a new connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._hung_up.clear()
        self._attempts.connected()
        self._session.connected()
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take what the daemon sent."""
        try:
            self._session.receive(data)
        except KSIError as error:
            self._session.fail(error)
            if self._transport is not None:
                self._transport.abort()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio gives it)
        """Decide what waits for the next connection and what fails."""
        self._transport = None
        self._writable.set()
        refusal = self._session.refusal
        if refusal is not None and not refusal.retryable:
            self._session.fail(refusal)
        self._session.lost()
        try:
            self._attempts.lost(heard=self._session.heard and refusal is None)
        except KSIError as error:
            self._session.fail(refusal or error)
        if self._session.idle:
            self._wanted.clear()
        self._hung_up.set()

    def pause_writing(self) -> None:
        """Hold new requests back."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let requests go on."""
        self._writable.set()

    async def _keep_connected(self) -> None:
        while True:
            await self._hung_up.wait()
            await self._wanted.wait()
            try:
                await self._connect()
            except KSIError as error:
                self._session.fail(error)
                self._wanted.clear()

    async def _connect(self) -> None:
        while True:
            await asyncio.sleep(self._attempts.delay())
            try:
                sock = connect(self._path)
            except KSIError as error:
                self._attempts.failed(error)
            else:
                await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)
                return

    def _flush(self) -> None:
        # The first write of a turn of the loop goes out at once; what follows it goes out together.
        if self._corked or self._transport is None:
            return
        data = self._session.data_to_send()
        if data:
            self._transport.write(data)
            self._corked = True
            self._loop.call_soon(self._uncork)

    def _uncork(self) -> None:
        self._corked = False
        self._flush()
