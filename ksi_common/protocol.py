"""The wire without I/O: bytes in, frames out. No sockets, no asyncio, no clock."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from ksi_common.errors import InvalidArgument
from ksi_common.frames import Answer, Call, Cancel, FrameId, answer_from_wire
from ksi_common.strict_json import loads

MAX_LINE: Final = 1024 * 1024
"""Bytes of a line to the daemon, its newline not counted."""
MAX_ANSWER: Final = 2 * MAX_LINE
"""Bytes of a line from the daemon."""
MAX_DATA: Final = MAX_LINE - 4096
"""Bytes of a request's data, encoded again."""
MAX_ID: Final = 128


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


class ServerConnection:
    """The daemon's end: bytes of a client become calls, cancels and the malformed."""

    __slots__ = ("_lines",)

    def __init__(self, *, max_line: int = MAX_LINE) -> None:
        self._lines = LineReader(max_line)

    @property
    def partial(self) -> bool:
        """Tell whether a line has begun and not ended."""
        return self._lines.partial

    def receive(self, data: bytes) -> Iterator[Call | Cancel | Malformed]:
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

    def receive(self, data: bytes) -> list[Answer]:
        """Take bytes, give the answers that they complete, in order; kinds not known yet are passed over."""
        # The limits of what may be sent do not bind the daemon: its frames nest what it was sent.
        answers = (answer_from_wire(orjson.loads(line)) for line in self._lines.feed(data))
        return [answer for answer in answers if answer is not None]


def decode_call(line: bytes) -> Call | Cancel | Malformed:
    """Read one line of a client."""
    try:
        frame = loads(line)
    except InvalidArgument as error:
        return Malformed(_salvaged_id(line), error, fatal=error.details["reason"] == "not_utf8")
    if type(frame) is not dict:
        return Malformed(None, _wrong("", "object", frame))
    try:
        if "event" in frame:
            return _call(frame)
        if frame.get("type") == "cancel":
            return _cancel(frame)
    except InvalidArgument as error:
        return Malformed(_readable_id(frame), error)
    return Malformed(
        _readable_id(frame),
        InvalidArgument(
            "the frame names no event",
            reason="missing",
            field="event",
            hint='send {"event":"system:discover"} to see what there is',
        ),
    )


def _call(frame: dict[str, Any]) -> Call:
    event = frame["event"]
    if type(event) is not str:
        raise _wrong("event", "string", event)
    data = frame.get("data", _NO_DATA)
    if type(data) is not dict:
        raise _wrong("data", "object", data)
    ident = frame.get("id")
    if ident is not None and (type(ident) is not str or len(ident) > MAX_ID):
        _check_id(ident)
    call = Call(event, data, ident)
    if len(frame) > 1 + (data is not _NO_DATA) + (ident is not None):
        _read_options(call, frame)
    return call


_NO_DATA: Mapping[str, Any] = {}


def _read_options(call: Call, frame: dict[str, Any]) -> None:
    for name in ("correlation_id", "causation_id", "idempotency_key", "traceparent"):
        value = frame.get(name)
        if value is None:
            continue
        if type(value) is not str or not 0 < len(value) <= MAX_ID:
            raise _wrong(name, f"string of 1 to {MAX_ID} characters", value)
        setattr(call, name, value)
    timeout_s = frame.get("timeout_s")
    if timeout_s is not None:
        if type(timeout_s) not in (int, float) or timeout_s <= 0:
            raise _wrong("timeout_s", "number of seconds above 0", timeout_s)
        call.timeout_s = float(timeout_s)


def _cancel(frame: dict[str, Any]) -> Cancel:
    if "id" not in frame:
        raise InvalidArgument("a cancel names no id", reason="missing", field="id")
    _check_id(frame["id"])
    return Cancel(frame["id"])


def _check_id(ident: object) -> None:
    if type(ident) is int or (type(ident) is str and len(ident) <= MAX_ID):
        return
    raise _wrong("id", f"string of at most {MAX_ID} characters or an integer", ident)


def _readable_id(frame: dict[str, Any]) -> FrameId | None:
    ident = frame.get("id")
    return ident if type(ident) is int or (type(ident) is str and len(ident) <= MAX_ID) else None


def _salvaged_id(line: bytes) -> FrameId | None:
    """Find the id of a line that is JSON, but not such as is accepted: its caller waits for an answer."""
    try:
        frame = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return _readable_id(frame) if isinstance(frame, dict) else None


_JSON_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}


def _wrong(field: str, wanted: str, value: object) -> InvalidArgument:
    article = "an" if wanted[0] in "aeiou" else "a"
    got = _JSON_NAMES.get(type(value), "number")
    message = f"{field or 'a frame'} must be {article} {wanted}, not {got}"
    return InvalidArgument(message, reason="wrong_type", field=field)


def _too_long(limit: int) -> InvalidArgument:
    return InvalidArgument(
        f"line over {limit} bytes",
        reason="too_large",
        limit=limit,
        hint="put large data into a file and send a reference to it",
    )
