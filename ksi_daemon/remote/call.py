"""One call to a client that serves: from the handler's table to its answer, without a task of its own."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import KSIError, ResourceExhausted
from ksi_common.messages import Message, Rendered
from ksi_daemon.outcomes import Later

if TYPE_CHECKING:
    from ksi_daemon.remote.server import RemoteServer

Done = Callable[[Rendered[Any] | None, KSIError | None], None]

DEFAULT_S: Final = 30.0
"""What a call that nothing else bounds is given."""
MAX_ITEMS: Final = 1024
"""Items of a stream that wait for whoever reads it."""


class RemoteCall(Later):
    """A request at work. ``begin`` sends it, or lets it wait for its turn; ``done`` is called once."""

    __slots__ = ("_done", "_start", "data", "envelope", "ident", "reply", "server", "stream")

    def __init__(
        self,
        envelope: EventEnvelope,
        data: bytes,
        reply: type[Message],
        start: Callable[["RemoteCall"], None],
        *,
        stream: bool = False,
    ) -> None:
        self.envelope = envelope
        self.data = data
        self.reply = reply
        self.stream = stream
        self.ident = 0
        self.server: RemoteServer | None = None
        self._start = start
        self._done: Done | None = None

    @property
    def over(self) -> bool:
        """Tell whether nobody waits for an answer any more."""
        return self._done is None

    @property
    def timeout_s(self) -> float:
        """Give the seconds that are left for an answer."""
        deadline = self.envelope.deadline
        return DEFAULT_S if deadline is None else max(deadline - monotonic(), 0.0)

    def begin(self, done: Done) -> None:
        """Ask; raises where nobody can be asked at present."""
        self._done = done
        self._start(self)

    def cancel(self) -> None:
        """Want no answer any more; the client is told, where it was asked."""
        if self._done is not None:
            self._done = None
            if self.server is not None:
                self.server.revoke(self)

    def finish(self, reply: Rendered[Any] | None, error: KSIError | None = None) -> None:
        """Give the answer on."""
        done, self._done = self._done, None
        if done is not None:
            done(reply, error)

    def cancel_with(self, error: KSIError) -> None:
        """End it with an error; the client is told that no more is wanted."""
        done = self._done
        self.cancel()
        if done is not None:
            done(None, error)


class RemoteStream(RemoteCall):
    """A stream at work: its items wait here until they are read."""

    __slots__ = ("_arrived", "_error", "_items")

    def __init__(
        self,
        envelope: EventEnvelope,
        data: bytes,
        reply: type[Message],
        start: Callable[[RemoteCall], None],
    ) -> None:
        super().__init__(envelope, data, reply, start, stream=True)
        self._items: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._error: KSIError | None = None

    def take_item(self, data: Mapping[str, Any]) -> None:
        """Keep an item; where too many wait, the stream ends."""
        if len(self._items) >= MAX_ITEMS:
            self.cancel_with(ResourceExhausted(f"{MAX_ITEMS} items wait unread", reason="slow_consumer"))
            return
        self._items.append(self.reply.model_validate(data))
        self._arrived.set()

    async def next(self) -> Message | None:
        """Give the next item; None at the end. Raises what the stream ended with."""
        while not self._items:
            if self.over:
                if self._error is not None:
                    raise self._error
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._items.popleft()

    def open(self) -> None:
        """Ask."""
        self.begin(self._end)

    def _end(self, _: Rendered[Any] | None, error: KSIError | None) -> None:
        self._error = error
        self._arrived.set()
