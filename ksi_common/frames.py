"""The records of the wire, version 1: one JSON object a line.

What a client sends is a Call or a Cancel; what it receives is a Reply, Item, Mark, End or Failure.
``id`` is the caller's, echoed unchanged; ids of the two directions are apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ksi_common.errors import KSIError, error_from_wire
from ksi_common.strict_json import dumps

FrameId = str | int

MarkKind = Literal["caught_up", "heartbeat", "gap"]


@dataclass(slots=True, eq=False)
class Call:
    """Ask for an event to be handled. Only ``event`` is needed."""

    event: str
    data: Mapping[str, Any]
    id: FrameId | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    timeout_s: float | None = None
    idempotency_key: str | None = None
    traceparent: str | None = None

    def encode(self) -> bytes:
        """Render as a line."""
        frame: dict[str, Any] = {"event": self.event, "data": self.data}
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value is not None:
                frame[name] = value
        return dumps(frame) + b"\n"


_OPTIONAL = ("id", "correlation_id", "causation_id", "timeout_s", "idempotency_key", "traceparent")


@dataclass(slots=True, eq=False)
class Cancel:
    """Stop a call or a stream of this connection."""

    id: FrameId

    def encode(self) -> bytes:
        """Render as a line."""
        return dumps({"type": "cancel", "id": self.id}) + b"\n"


@dataclass(slots=True, eq=False)
class ServedAnswer:
    """What a client that serves events says to a call: a reply, an item, the end of a stream, or an error."""

    id: FrameId
    kind: Literal["reply", "item", "end", "error"]
    data: Mapping[str, Any]
    """Of a reply or an item; of an error what ``KSIError.to_wire`` gives."""

    def encode(self) -> bytes:
        """Render as a line."""
        frame: dict[str, Any] = {"type": self.kind, "id": self.id}
        if self.kind != "end":
            frame["error" if self.kind == "error" else "data"] = self.data
        return dumps(frame) + b"\n"


SERVED: Sequence[str] = ("reply", "item", "end", "error")
"""No set: what a client sends as its type may be anything, and what cannot be hashed is in none."""


@dataclass(slots=True, eq=False)
class Asked:
    """The daemon asks a client that serves to handle an event, within ``timeout_s`` seconds."""

    id: FrameId
    event: str
    data: dict[str, Any]
    timeout_s: float | None = None
    correlation_id: str | None = None
    event_id: str | None = None
    actor: str | None = None


@dataclass(slots=True, eq=False)
class Revoked:
    """The daemon does not want the answer to a call any more."""

    id: FrameId


@dataclass(slots=True, eq=False)
class Reply:
    """Answer a request; terminal."""

    id: FrameId | None
    event: str
    data: dict[str, Any]
    correlation_id: str | None = None
    timestamp: str | None = None
    warnings: Sequence[str] = ()
    """What the caller should know: of deprecations, each once a connection."""


@dataclass(slots=True, eq=False)
class Item:
    """One of a stream's many. ``cursor``: where to resume after it, in a subscription."""

    id: FrameId | None
    data: dict[str, Any]
    cursor: str | None = None


@dataclass(slots=True, eq=False)
class Mark:
    """A point within a subscription: caught up, alive, or a gap in what can be had."""

    id: FrameId | None
    kind: MarkKind
    cursor: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class End:
    """A stream's end; terminal."""

    id: FrameId | None


@dataclass(slots=True, eq=False)
class Failure:
    """An error; terminal. ``id`` is None where the line could not be read."""

    id: FrameId | None
    error: KSIError
    correlation_id: str | None = None


Answer = Reply | Item | Mark | End | Failure

FromDaemon = Answer | Asked | Revoked


def frame_from_wire(frame: Mapping[str, Any]) -> FromDaemon | None:
    """Make the record of any parsed line from the daemon; None: a type that this version does not know."""
    match frame.get("type"):
        case "call":
            optional = {
                name: frame.get(name) for name in ("timeout_s", "correlation_id", "event_id", "actor")
            }
            return Asked(frame["id"], frame["event"], frame["data"], **optional)
        case "cancel":
            return Revoked(frame["id"])
    return answer_from_wire(frame)


def answer_from_wire(frame: Mapping[str, Any]) -> Answer | None:
    """Make the record of a parsed answer; None: a type that this version does not know."""
    kind = frame.get("type")
    ident = frame.get("id")
    match kind:
        case "reply":
            return Reply(
                ident,
                frame["event"],
                frame["data"],
                frame.get("correlation_id"),
                frame.get("timestamp"),
                frame.get("warnings", ()),
            )
        case "item":
            return Item(ident, frame["data"], frame.get("cursor"))
        case "end":
            return End(ident)
        case "error":
            return Failure(ident, error_from_wire(frame["error"]), frame.get("correlation_id"))
        case "caught_up" | "heartbeat" | "gap":
            fields = {name: value for name, value in frame.items() if name not in ("id", "type", "cursor")}
            return Mark(ident, kind, frame.get("cursor"), fields)
    return None


def call_line(
    ident: int, event: str, data: bytes, timeout_s: float, correlation_id: str, event_id: str, actor: str
) -> bytes:
    """Render a call to a client that serves; ``data`` is JSON."""
    rest = dumps({"correlation_id": correlation_id, "event_id": event_id, "actor": actor})
    return b'{"type":"call","id":"d%d","event":"%b","data":%b,"timeout_s":%.3f,%b\n' % (
        ident, event.encode(), data, timeout_s, rest[1:],
    )  # fmt: skip


# What the daemon writes, rendered from parts that are JSON already: no part is encoded twice.


def reply_line(ident: bytes, event: bytes, data: bytes, correlation_id: bytes, timestamp: bytes) -> bytes:
    """Render a reply; all but ``timestamp`` (plain text) are JSON."""
    return b"".join(
        (
            b'{"id":',
            ident,
            b',"type":"reply","event":',
            event,
            b',"data":',
            data,
            b',"correlation_id":',
            correlation_id,
            b',"timestamp":"',
            timestamp,
            b'"}\n',
        )
    )


def with_warnings(line: bytes, warnings: Sequence[str]) -> bytes:
    """Add warnings to a rendered reply."""
    return line.removesuffix(b"}\n") + b',"warnings":' + dumps(list(warnings)) + b"}\n"


def item_line(ident: bytes, data: bytes) -> bytes:
    """Render an item of a plain stream; both parts are JSON."""
    return b'{"id":%b,"type":"item","data":%b}\n' % (ident, data)


def end_line(ident: bytes) -> bytes:
    """Render the end of a stream."""
    return b'{"id":%b,"type":"end"}\n' % ident


def mark_line(ident: bytes, kind: MarkKind, cursor: str, fields: Mapping[str, Any]) -> bytes:
    """Render a mark of a subscription."""
    rest = dumps({"type": kind, "cursor": cursor, **fields})
    return b'{"id":%b,%b\n' % (ident, rest[1:])


def error_line(ident: bytes, error: KSIError, correlation_id: str | None = None) -> bytes:
    """Render an error, whatever its author put into it: the caller is to have its answer."""
    whose = b"" if correlation_id is None else b',"correlation_id":' + dumps(correlation_id)
    return b'{"id":%b,"type":"error","error":%b%b}\n' % (ident, error_text(error), whose)


def error_text(error: KSIError) -> bytes:
    """Render the ``error`` object of an error frame, whatever its author put into it."""
    wire = error.to_wire()
    try:
        return dumps(wire, default=str)
    except TypeError:
        return dumps(_renderable(wire), default=str)


def _renderable(wire: dict[str, Any]) -> dict[str, Any]:
    details = {name: _plain(value) for name, value in wire["details"].items()}
    return {name: _plain(value) for name, value in wire.items() if name != "details"} | {"details": details}


def _plain(value: Any) -> Any:
    """Give ``value``, or its text where it is no JSON: a lone surrogate, a huge integer, a key of no text."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    try:
        dumps(value, default=str)
    except TypeError:
        return ascii(value)
    return value
