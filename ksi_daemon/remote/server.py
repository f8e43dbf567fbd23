"""A connected client that serves: what it has at work, and what it says to it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from pydantic import ValidationError

from ksi_common.errors import KSIError, OperationalError, Unavailable, error_from_wire
from ksi_common.frames import ServedAnswer, call_line
from ksi_common.messages import Rendered
from ksi_common.strict_json import dumps
from ksi_daemon.remote.call import RemoteCall, RemoteStream

Bug = Callable[[str, str, str], KSIError]
"""Note a fault of a plugin in an event, in words; give the error to answer with."""

REVOKE: Final = b'{"type":"cancel","id":"d%d"}\n'


class Line(Protocol):
    """The connection of a client that serves."""

    serves: Callable[[ServedAnswer], None] | None
    """Who hears what it answers."""

    @property
    def full(self) -> bool:
        """Tell whether the client has as much unread as it may."""
        ...

    def write(self, line: bytes) -> None:
        """Send a frame."""
        ...

    async def wait_writable(self) -> None:
        """Return when the client has read enough, or is gone."""
        ...


class RemoteServer:
    """One client under a plugin's name. ``freed`` is called whenever it can take one more."""

    def __init__(self, line: Line, plugin: str, limit: int, freed: Callable[[], None], bug: Bug) -> None:
        self.plugin = plugin
        self.limit = limit
        self.answered = 0
        self._line = line
        self._freed = freed
        self._bug = bug
        self._calls: dict[str, RemoteCall] = {}
        self._count = 0
        self._is_behind = asyncio.Event()
        """It was to take one more, and had too much unread."""

    @property
    def at_work(self) -> int:
        """How many calls it has."""
        return len(self._calls)

    def can_take(self) -> bool:
        """Tell whether it can take one more; one that has too much unread says by ``freed`` when it can."""
        if self._line.full:
            self._is_behind.set()
            return False
        return len(self._calls) < self.limit

    async def serve(self) -> None:
        """Take more whenever the client has read what kept it from that, until cancelled."""
        while True:
            await self._is_behind.wait()
            self._is_behind.clear()
            await self._line.wait_writable()
            self._freed()

    def ask(self, call: RemoteCall) -> None:
        """Send a call."""
        self._count += 1
        call.ident = self._count
        call.server = self
        self._calls[f"d{call.ident}"] = call
        envelope = call.envelope
        line = call_line(
            call.ident,
            envelope.event,
            call.data,
            call.timeout_s,
            envelope.correlation_id,
            envelope.event_id,
            envelope.actor,
        )
        self._line.write(line)

    def revoke(self, call: RemoteCall) -> None:
        """Tell the client that a call is not wanted any more."""
        if self._calls.pop(f"d{call.ident}", None) is not None:
            self._line.write(REVOKE % call.ident)
            self._freed()

    def receive(self, answer: ServedAnswer) -> None:
        """Take what the client says; what nobody waits for is passed over."""
        call = self._calls.get(str(answer.id))
        if call is None:
            return
        if answer.kind == "item":
            self._item(call, answer.data)
            return
        del self._calls[str(answer.id)]
        self.answered += 1
        if answer.kind == "error":
            call.finish(None, self._error(call, answer.data))
        elif (answer.kind == "reply") is call.stream:
            call.finish(
                None, self._broken(call, f"a stream ends with end, a request with reply, not {answer.kind}")
            )
        elif call.stream:
            call.finish(None)
        else:
            self._reply(call, answer.data)
        self._freed()

    def lost(self) -> int:
        """Hear that the client is gone; what it had at work is answered. Give how much that was."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            event = call.envelope.event
            call.finish(
                None,
                Unavailable(
                    f"{self.plugin}, which handles {event}, is gone; it may or may not have been done",
                    reason="server_gone",
                    plugin=self.plugin,
                ),
            )
        return len(calls)

    def _reply(self, call: RemoteCall, data: Mapping[str, Any]) -> None:
        try:
            call.reply.__pydantic_validator__.validate_python(data)
        except ValidationError as error:
            call.finish(None, self._broken(call, _said(error)))
        else:
            call.finish(Rendered(call.reply, dumps(data)))

    def _item(self, call: RemoteCall, data: Mapping[str, Any]) -> None:
        if not isinstance(call, RemoteStream):
            call.cancel_with(self._broken(call, "a request is answered with reply, not item"))
            return
        try:
            call.take_item(data)
        except ValidationError as error:
            call.cancel_with(self._broken(call, _said(error)))

    def _error(self, call: RemoteCall, wire: Mapping[str, Any]) -> KSIError:
        error = error_from_wire(wire)
        return (
            error if isinstance(error, OperationalError) else self._broken(call, error.message or "it failed")
        )

    def _broken(self, call: RemoteCall, how: str) -> KSIError:
        return self._bug(self.plugin, call.envelope.event, how)


def _said(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    return f"its answer does not fit what it declares: {path}: {problem['msg']}"
