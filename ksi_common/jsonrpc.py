"""JSON-RPC 2.0 on KSI's socket, without I/O: its objects become calls, and answers become its objects.

It is known by its shape: an object with ``jsonrpc``, or an array that has one. A method is an event's name,
``params`` (by name) its data; what else travels with a call stands beside them, as in KSI's own frames
(``timeout_s``, ``idempotency_key``, …). A stream's items and marks are notifications (``$/item``, ``$/gap``,
…) whose ``params`` name the call's id; its end is the response, ``null``. The notification ``$/cancel
{"id": …}`` stops a call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ksi_common.errors import InvalidArgument, KSIError
from ksi_common.frame_fields import MAX_ID, read_options, wrong_type
from ksi_common.frames import Answer, Call, Failure, Item, Mark, Reply
from ksi_common.strict_json import dumps

RpcId = str | int | float | None

CANCEL: Final = "$/cancel"
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
MAX_BATCH: Final = 128
"""Calls of one array: as many as may be in flight on a connection."""

CODES: Final[Mapping[str, int]] = {
    "INVALID_ARGUMENT": INVALID_PARAMS,
    "INTERNAL": -32603,
    "NOT_FOUND": -32001,
    "ALREADY_EXISTS": -32002,
    "FAILED_PRECONDITION": -32003,
    "PERMISSION_DENIED": -32004,
    "RESOURCE_EXHAUSTED": -32005,
    "UNAVAILABLE": -32006,
    "DEADLINE_EXCEEDED": -32007,
    "CANCELLED": -32008,
    "UNIMPLEMENTED": -32009,
    "DATA_LOSS": -32010,
}
"""By KSI's codes. NOT_FOUND for want of the method itself is -32601."""


@dataclass(slots=True, eq=False)
class RpcCall:
    """A request, or a notification: nothing is answered then, whatever comes of it."""

    call: Call
    id: RpcId = None
    notification: bool = False


@dataclass(slots=True, eq=False)
class RpcCancel:
    """Stop the call of this id; ``answer_to``: the id of a request to do so, which is to be answered."""

    id: RpcId
    answer_to: RpcId = None
    notification: bool = True


@dataclass(slots=True, eq=False)
class RpcRefusal:
    """What is no request, or one with wrong params: answer ``line`` (an object, no newline)."""

    line: bytes


RpcPart = RpcCall | RpcCancel | RpcRefusal


@dataclass(slots=True, eq=False)
class Rpc:
    """What one line asks; ``batch``: the answers of its parts are one array."""

    parts: Sequence[RpcPart]
    batch: bool = False


def is_rpc(frame: Any) -> bool:
    """Tell whether parsed JSON has the shape of JSON-RPC; an empty array is an empty batch."""
    if type(frame) is dict:
        return "jsonrpc" in frame and "event" not in frame
    if type(frame) is list:
        return not frame or any(type(part) is dict and "jsonrpc" in part for part in frame)
    return False


def read(frame: Any) -> Rpc:
    """Read what has the shape of JSON-RPC. What is wrong with a part is its answer; nothing is raised."""
    if type(frame) is not list:
        part = _part(frame)
        return Rpc((part,) if part is not None else ())
    if not 0 < len(frame) <= MAX_BATCH:
        wrong = InvalidArgument(
            f"a batch has 1 to {MAX_BATCH} calls, not {len(frame)}", reason="batch_size", limit=MAX_BATCH
        )
        return Rpc((_refusal(None, wrong),))
    parts = [_part(each) for each in frame]
    return Rpc([part for part in parts if part is not None], batch=True)


def refuse(frame: Any, error: InvalidArgument) -> Rpc:
    """Answer what has the shape, and is JSON that KSI does not take (a number out of range, depth)."""
    ident = frame.get("id") if type(frame) is dict else None
    return Rpc((_refusal(ident if _is_id(ident) else None, error),))


def render(answer: Answer, ident: RpcId) -> bytes:
    """Give the object, with no newline, that says to the caller of ``ident`` what ``answer`` says."""
    match answer:
        case Reply():
            return _response(ident, "result", answer.data)
        case Item():
            cursor = {} if answer.cursor is None else {"cursor": answer.cursor}
            return _notification("$/item", {"id": ident, "data": answer.data, **cursor})
        case Mark():
            return _notification(f"$/{answer.kind}", {"id": ident, "cursor": answer.cursor, **answer.fields})
        case Failure():
            return render_error(ident, answer.error, correlation_id=answer.correlation_id)
    return _response(ident, "result", None)


def render_item(line: bytes, ident: RpcId) -> bytes:
    """Give the same of an item that has a cursor, from its frame.

    The data are passed on as they are: what the log holds may be nested deeper than orjson writes.
    """
    _, _, rest = line.partition(b',"type":"item","cursor":')
    cursor, _, data = rest.partition(b',"data":')
    return b'{"jsonrpc":"2.0","method":"$/item","params":{"id":%b,"data":%b,"cursor":%b}}' % (
        dumps(ident), data[:-1], cursor
    )  # fmt: skip


def render_error(
    ident: RpcId, error: KSIError, *, code: int | None = None, correlation_id: str | None = None
) -> bytes:
    """Give the error response; ``code``: in place of the one that the error's code has."""
    wire = error.to_wire()
    message = wire.pop("message")
    if correlation_id is not None:
        wire["correlation_id"] = correlation_id
    code = _code(error) if code is None else code
    return _response(ident, "error", {"code": code, "message": message, "data": wire})


def _part(frame: Any) -> RpcPart | None:
    """Read one object; None: a notification with nothing to do, and nobody to be told."""
    try:
        _check_request(frame)
    except InvalidArgument as error:
        return _refusal(_readable_id(frame), error)
    ident, notification = frame.get("id"), "id" not in frame
    try:
        return _request(frame, ident, notification=notification)
    except InvalidArgument as error:
        return None if notification else _refusal(ident, error, INVALID_PARAMS)


def _request(frame: Mapping[str, Any], ident: RpcId, *, notification: bool) -> RpcPart:
    params = frame.get("params", {})
    if type(params) is list:
        raise InvalidArgument(
            "params must be an object, not array", reason="wrong_type", field="params",
            hint='name them, like {"key":"color"}',
        )  # fmt: skip
    method = frame["method"]
    if method == CANCEL:
        if not _is_id(params.get("id")) or "id" not in params:
            raise InvalidArgument(f"{CANCEL} names no id", reason="missing", field="params.id")
        return RpcCancel(params["id"], ident, notification)
    call = Call(method, params)
    read_options(call, frame)
    return RpcCall(call, ident, notification)


def _check_request(frame: Any) -> None:
    """Raise InvalidArgument where this is no Request object of the specification."""
    if type(frame) is not dict:
        raise wrong_type("", "object", frame)
    if frame.get("jsonrpc") != "2.0":
        raise InvalidArgument('jsonrpc must be "2.0"', reason="wrong_version", field="jsonrpc")
    if type(frame.get("method")) is not str:
        raise wrong_type("method", "string", frame.get("method"))
    if "id" in frame and not _is_id(frame["id"]):
        raise wrong_type("id", f"string of at most {MAX_ID} characters, number or null", frame["id"])
    if "params" in frame and type(frame["params"]) not in (dict, list):
        raise wrong_type("params", "object", frame["params"])


def _is_id(ident: object) -> bool:
    return ident is None or type(ident) in (int, float) or (type(ident) is str and len(ident) <= MAX_ID)


def _readable_id(frame: Any) -> RpcId:
    ident = frame.get("id") if type(frame) is dict else None
    return ident if _is_id(ident) else None


def _code(error: KSIError) -> int:
    if error.code == "NOT_FOUND" and error.details.get("reason") == "unknown_event":
        return METHOD_NOT_FOUND
    return CODES.get(error.code, CODES["INTERNAL"])


def _refusal(ident: RpcId, error: InvalidArgument, code: int = INVALID_REQUEST) -> RpcRefusal:
    return RpcRefusal(render_error(ident, error, code=code))


def _response(ident: RpcId, member: str, value: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "id": ident, member: value})


def _notification(method: str, params: Mapping[str, Any]) -> bytes:
    return dumps({"jsonrpc": "2.0", "method": method, "params": params})
