"""The wire without I/O: bytes in, frames out. No sockets, no asyncio, no clock."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from ksi_common import jsonrpc
from ksi_common.errors import InvalidArgument
from ksi_common.frame_fields import MAX_ID, check_id, read_options, readable_id, wrong_type
from ksi_common.frames import SERVED, Call, Cancel, FrameId, FromDaemon, ServedAnswer, frame_from_wire
from ksi_common.jsonrpc import Rpc
from ksi_common.strict_json import loads

MAX_LINE: Final = 1024 * 1024
"""Bytes of a line to the daemon, its newline not counted."""
MAX_ANSWER: Final = 2 * MAX_LINE
"""Bytes of a line from the daemon."""
MAX_DATA: Final = MAX_LINE - 4096
"""Bytes of a request's data, encoded again."""


class LineTooLong(Exception):
    """A line passed the limit; what follows cannot be framed. ``lines``: those that came before it."""

    def __init__(self, lines: Sequence[bytes] = ()) -> None:
        super().__init__()
        self.lines = lines


class LineReader:
    """Cut a byte stream into lines of at most ``limit`` bytes."""

    __slots__ = ("_parts", "_size", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def partial(self) -> bool:
        """Tell whether a line has begun and not ended."""
        return self._size > 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, give the lines that they complete; raise LineTooLong.

        A long line arriving in pieces is kept in pieces and joined once, at its end.
        """
        head, newline, rest = data.partition(b"\n")
        if not newline:
            self._keep(head)
            return []
        if self._parts:
            self._keep(head)
            head = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
        elif len(head) > self.limit:
            raise LineTooLong
        if not rest:
            return [head]
        lines = rest.split(b"\n")
        lines.insert(0, head)
        last = lines.pop()
        if len(rest) > self.limit:
            self._check(lines, last)
        if last:
            self._keep(last)
        return lines

    def _check(self, lines: Sequence[bytes], last: bytes) -> None:
        for number, line in enumerate((*lines, last)):
            if len(line) > self.limit:
                raise LineTooLong(lines[:number])

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self.limit:
            raise LineTooLong
        if part:
            self._parts.append(part)


@dataclass(slots=True, eq=False)
class Malformed:
    """A line that is no frame: answer ``error`` under ``id``; where ``fatal``, then close."""

    id: FrameId | None
    error: InvalidArgument
    fatal: bool = False


FromClient = Call | Cancel | ServedAnswer | Malformed | Rpc


class ServerConnection:
    """The daemon's end: bytes of a client become calls, cancels, JSON-RPC and the malformed."""

    __slots__ = ("_lines",)

    def __init__(self, *, max_line: int = MAX_LINE) -> None:
        self._lines = LineReader(max_line)

    @property
    def partial(self) -> bool:
        """Tell whether a line has begun and not ended."""
        return self._lines.partial

    def receive(self, data: bytes) -> Iterator[FromClient]:
        """Take bytes, give what they complete, in order; nothing follows a fatal Malformed."""
        too_long = False
        try:
            lines: Sequence[bytes] = self._lines.feed(data)
        except LineTooLong as error:
            lines, too_long = error.lines, True
        for line in lines:
            frame = decode_call(line)
            yield frame
            if type(frame) is Malformed and frame.fatal:
                return
        if too_long:
            yield Malformed(None, _too_long(self._lines.limit), fatal=True)


class ClientConnection:
    """A client's end: bytes of the daemon become answers."""

    __slots__ = ("_lines",)

    def __init__(self, *, max_line: int = MAX_ANSWER) -> None:
        self._lines = LineReader(max_line)

    def receive(self, data: bytes) -> list[FromDaemon]:
        """Take bytes, give the frames that they complete, in order; kinds not known are passed over."""
        # The limits of what may be sent do not bind the daemon: its frames nest what it was sent.
        answers = (frame_from_wire(orjson.loads(line)) for line in self._lines.feed(data))
        return [answer for answer in answers if answer is not None]


def decode_call(line: bytes) -> FromClient:
    """Read one line of a client."""
    try:
        frame = loads(line)
    except InvalidArgument as error:
        return _unacceptable(line, error)
    try:
        if type(frame) is dict:
            if "event" in frame:
                return _call(frame)
            if frame.get("type") == "cancel":
                return _cancel(frame)
            if frame.get("type") in SERVED:
                return _served(frame)
    except InvalidArgument as error:
        return Malformed(readable_id(frame), error)
    return _not_ours(frame)


def _call(frame: dict[str, Any]) -> Call | ServedAnswer:
    event = frame["event"]
    if type(event) is not str:
        raise wrong_type("event", "string", event)
    data = frame.get("data", _NO_DATA)
    if type(data) is not dict:
        raise wrong_type("data", "object", data)
    ident = frame.get("id")
    if ident is not None and (type(ident) is not str or len(ident) > MAX_ID):
        check_id(ident)
    call = Call(event, data, ident)
    if len(frame) > 1 + (data is not _NO_DATA) + (ident is not None):
        if frame.get("type") in SERVED:  # whoever serves may repeat the event that it answers
            return _served(frame)
        read_options(call, frame)
    return call


_NO_DATA: Mapping[str, Any] = {}


def _cancel(frame: dict[str, Any]) -> Cancel:
    if "id" not in frame:
        raise InvalidArgument("a cancel names no id", reason="missing", field="id")
    check_id(frame["id"])
    return Cancel(frame["id"])


def _served(frame: dict[str, Any]) -> ServedAnswer:
    if "id" not in frame:
        raise InvalidArgument(f"a frame of type {frame['type']} names no id", reason="missing", field="id")
    check_id(frame["id"])
    name = "error" if frame["type"] == "error" else "data"
    data = frame.get(name, _NO_DATA)
    if type(data) is not dict and frame["type"] != "end":
        raise wrong_type(name, "object", data if data is not _NO_DATA else None)
    return ServedAnswer(frame["id"], frame["type"], data)


def _not_ours(frame: Any) -> Malformed | Rpc:
    if jsonrpc.is_rpc(frame):
        return jsonrpc.read(frame)
    if type(frame) is not dict:
        return Malformed(None, wrong_type("", "object", frame))
    return names_no_event(readable_id(frame))


def names_no_event(ident: FrameId | None) -> Malformed:
    """Say what is wrong with a frame that asks for nothing."""
    return Malformed(
        ident,
        InvalidArgument(
            "the frame names no event",
            reason="missing",
            field="event",
            hint='send {"event":"system:discover"} to see what there is',
        ),
    )


def _unacceptable(line: bytes, error: InvalidArgument) -> Malformed | Rpc:
    """Answer a line that is not JSON, or not such as is accepted: whoever sent an id waits for an answer."""
    try:
        frame = orjson.loads(line)
    except orjson.JSONDecodeError:
        return Malformed(None, error, fatal=error.details["reason"] == "not_utf8")
    if jsonrpc.is_rpc(frame):
        return jsonrpc.refuse(frame, error)
    return Malformed(readable_id(frame) if type(frame) is dict else None, error)


def _too_long(limit: int) -> InvalidArgument:
    return InvalidArgument(
        f"line over {limit} bytes",
        reason="too_large",
        limit=limit,
        hint="put large data into a file and send a reference to it",
    )
