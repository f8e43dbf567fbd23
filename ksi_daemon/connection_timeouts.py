"""How long a client is waited for: to end a line that it has begun, and to read what it asked for."""

import asyncio
from collections.abc import Callable
from typing import Final

from ksi_common.errors import DeadlineExceeded, KSIError
from ksi_daemon.connection_limits import ConnectionLimits

_READ_ON_S: Final = 0.02


class ConnectionTimeouts:
    """Timers of one connection. ``refuse`` says why it is cut, ``abort`` cuts it without a word."""

    __slots__ = ("_abort", "_limits", "_line", "_loop", "_reading", "_refuse", "_unread")

    def __init__(
        self, limits: ConnectionLimits, *, refuse: Callable[[KSIError], None], abort: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._refuse = refuse
        self._abort = abort
        self._line: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._unread = 0

    @property
    def awaits_line(self) -> bool:
        """Tell whether a line that has begun is waited for."""
        return self._line is not None

    def await_line(self, *, begun: bool) -> None:
        """Wait for no line any more, or for another one that has ``begun``."""
        if self._line is not None:
            self._line.cancel()
            self._line = None
        if begun:
            self._line = self._loop.call_later(self._limits.partial_line_s, self._read_on)

    def await_reader(self, transport: asyncio.WriteTransport) -> None:
        """Wait for a client that has more unread than it may."""
        self._unread = transport.get_write_buffer_size()
        self._reading = self._loop.call_later(self._limits.unwritable_s, self._cut_if_stuck, transport)

    def has_read(self) -> None:
        """Wait no more: it has read enough."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def end(self) -> None:
        """Wait for nothing any more."""
        self.await_line(begun=False)
        self.has_read()

    def _read_on(self) -> None:
        """Read what came while the daemon itself stood still: timers run before sockets are looked at."""
        self._line = self._loop.call_later(_READ_ON_S, self._cut_line)

    def _cut_line(self) -> None:
        limit = self._limits.partial_line_s
        self._refuse(DeadlineExceeded(f"a line did not end within {limit:g} s", reason="partial_line"))

    def _cut_if_stuck(self, transport: asyncio.WriteTransport) -> None:
        unread = transport.get_write_buffer_size()
        if unread < self._unread:  # it reads, if slowly
            self.await_reader(transport)
        else:
            self._abort()
