"""Drive a session over a plain socket, in the thread of the caller. No event loop."""

import math
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import SHUT_RDWR, socket
from threading import Lock
from typing import Final

from ksi_client.connecting import Attempts, connect
from ksi_client.exchanges import Entry, Exchange, Feed
from ksi_client.session import ClientStatistics, Session
from ksi_common.errors import FailedPrecondition, KSIError

READ_SIZE: Final = 256 * 1024
LONGEST_MS: Final = 2**31 - 1
"""What poll() waits at most; whoever waits for longer asks it again."""


class BlockingLink:
    """The connection of a blocking client. It is read only while its owner waits for something.

    One thread at a time, which says so by ``turn``. In a process that is forked it makes one of its own.
    """

    def __init__(self, path: Path, *, connect_timeout_s: float | None) -> None:
        self._path = path
        self._session = Session()
        self._attempts = Attempts(connect_timeout_s)
        self._sock: socket | None = None
        self._unwritten = b""
        self._turn = Lock()
        self._pid = os.getpid()

    def open(self) -> None:
        """Connect now; raises where that fails for ``connect_timeout_s``."""
        while self._sock is None:
            if error := self._try_to_connect(math.inf):
                raise error

    def close(self, error: KSIError) -> None:
        """Hang up; what is under way gets ``error``, in another thread, too, which is woken."""
        self._session.fail(error)
        if self._sock is not None and self._pid == os.getpid():  # else the connection is the parent's
            with suppress(OSError):  # the daemon has hung up already
                self._sock.shutdown(SHUT_RDWR)
        self._hang_up()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep other threads out; raises where one is using it."""
        self._leave_to_parent()
        if not self._turn.acquire(blocking=False):
            raise FailedPrecondition("another thread is using this client", hint="one Client for each thread")
        try:
            yield
        finally:
            self._turn.release()

    def start(self, exchange: Exchange) -> None:
        """Send a request, or hold it back until it can be sent."""
        self._session.start(exchange)
        self._write()

    def cancel(self, exchange: Exchange) -> None:
        """Stop a request."""
        self._leave_to_parent()
        self._session.cancel(exchange)
        self._write()

    def pop(self, feed: Feed) -> Entry | None:
        """Take the oldest entry of a feed."""
        entry = self._session.pop(feed)
        self._write()
        return entry

    def wait(self, deadline: float) -> None:
        """Wait until something arrives, the connection changes, or ``deadline`` (monotonic seconds)."""
        if self._sock is not None:
            self._transfer(self._sock, deadline)
        elif error := self._try_to_connect(deadline):
            self._session.fail(error)

    def statistics(self) -> ClientStatistics:
        """Give figures."""
        return self._session.statistics()

    def _leave_to_parent(self) -> None:
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._turn = Lock()  # a thread that there is no more may have held it
        self._hang_up()
        self._session.lost()

    def _try_to_connect(self, deadline: float) -> KSIError | None:
        """Make one attempt; give the error where no further one is to be made."""
        time.sleep(max(0.0, min(self._attempts.delay(), deadline - time.monotonic())))
        try:
            self._sock = connect(self._path)
        except KSIError as error:
            return self._give_up(error)
        self._attempts.connected()
        self._session.connected()
        self._write()
        return None

    def _give_up(self, error: KSIError) -> KSIError | None:
        try:
            self._attempts.failed(error)
        except KSIError as last:
            return last
        return None

    def _transfer(self, sock: socket, deadline: float) -> None:
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if self._unwritten else 0))
        if not poll.poll(_milliseconds(deadline)):
            return
        self._write()
        if self._sock is not None:
            self._read(self._sock)

    def _read(self, sock: socket) -> None:
        try:
            data = sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        try:
            self._session.receive(data)
        except KSIError as error:
            self._session.fail(error)
            self._hang_up()
        self._write()

    def _write(self) -> None:
        self._unwritten += self._session.data_to_send()
        if not self._unwritten or self._sock is None:
            return
        try:
            written = self._sock.send(self._unwritten)
        except BlockingIOError:
            return
        except OSError:
            # What the daemon said before it hung up may still be read; reading finds the end.
            self._unwritten = b""
            return
        self._unwritten = self._unwritten[written:]

    def _lose(self) -> None:
        self._hang_up()
        refusal = self._session.refusal
        heard = self._session.heard and refusal is None
        if refusal is not None and not refusal.retryable:
            self._session.fail(refusal)
        self._session.lost()
        try:
            self._attempts.lost(heard=heard)
        except KSIError as error:
            self._session.fail(refusal or error)

    def _hang_up(self) -> None:
        sock, self._sock = self._sock, None
        self._unwritten = b""
        if sock is not None:
            sock.close()


def _milliseconds(deadline: float) -> float | None:
    if deadline == math.inf:
        return None
    return min(max(0, math.ceil((deadline - time.monotonic()) * 1000)), LONGEST_MS)
