"""JSON-RPC 2.0 without I/O: what lines become, and what answers become."""

import json
from typing import Any

import pytest

from ksi_common.errors import ERRORS, InvalidArgument, KSIError, NotFound
from ksi_common.frames import Answer, Call, Cancel, End, Failure, Item, Mark, Reply, answer_from_wire
from ksi_common.jsonrpc import (
    CODES,
    MAX_BATCH,
    Rpc,
    RpcCall,
    RpcCancel,
    RpcId,
    RpcRefusal,
    is_rpc,
    render,
    render_item,
)
from ksi_common.protocol import Malformed, decode_call
from ksi_common.strict_json import dumps


def parts(frame: Any) -> list[Any]:
    read = decode_call(dumps(frame))
    assert isinstance(read, Rpc)
    return list(read.parts)


def called(frame: dict[str, Any]) -> RpcCall:
    (part,) = parts({"jsonrpc": "2.0", **frame})
    assert isinstance(part, RpcCall)
    return part


def refused(frame: Any) -> dict[str, Any]:
    (part,) = parts(frame)
    assert isinstance(part, RpcRefusal)
    answer: dict[str, Any] = json.loads(part.line)
    assert (answer["jsonrpc"], set(answer)) == ("2.0", {"jsonrpc", "id", "error"})
    return answer


@pytest.mark.parametrize("ident", ["7", "", 7, -1, 0, 1.5, None, "ü", "x" * 128, 2**53])
def test_a_request_is_a_call_with_the_id_that_it_has(ident: Any) -> None:
    part = called({"method": "state:get", "params": {"key": "a"}, "id": ident})
    assert (part.call.event, part.call.data, part.call.id) == ("state:get", {"key": "a"}, None)
    assert (part.id, part.notification) == (ident, False)


def test_without_an_id_it_is_a_notification() -> None:
    assert called({"method": "state:get"}).notification
    assert not called({"method": "state:get", "id": None}).notification


def test_params_may_be_left_out() -> None:
    assert called({"method": "system:health", "id": 1}).call.data == {}


def test_what_travels_with_a_call_stands_beside_the_params() -> None:
    travels = {
        "correlation_id": "c", "causation_id": "d", "idempotency_key": "k", "traceparent": "t",
        "timeout_s": 3.0,
    }  # fmt: skip
    call = called({"method": "a:b", "id": 1, **travels}).call
    assert {name: getattr(call, name) for name in travels} == travels


@pytest.mark.parametrize(
    ("frame", "code", "ident", "says"),
    [
        ({"jsonrpc": "2.0", "method": 1, "params": "bar"}, -32600, None, "method must be a string"),
        ({"jsonrpc": "2.0", "id": 4}, -32600, 4, "method must be a string"),
        ({"jsonrpc": "1.0", "method": "a:b", "id": 4}, -32600, 4, 'jsonrpc must be "2.0"'),
        ({"jsonrpc": 2.0, "method": "a:b", "id": 4}, -32600, 4, 'jsonrpc must be "2.0"'),
        ({"jsonrpc": "2.0", "method": "a:b", "id": True}, -32600, None, "id must be a string"),
        ({"jsonrpc": "2.0", "method": "a:b", "id": [1]}, -32600, None, "id must be a string"),
        ({"jsonrpc": "2.0", "method": "a:b", "id": "x" * 129}, -32600, None, "128 characters"),
        ({"jsonrpc": "2.0", "method": "a:b", "params": None, "id": 4}, -32600, 4, "params must be an object"),
        ({"jsonrpc": "2.0", "method": "a:b", "params": 5, "id": 4}, -32600, 4, "params must be an object"),
        ({"jsonrpc": "2.0", "method": "a:b", "params": [1], "id": 4}, -32602, 4, "not array"),
        ({"jsonrpc": "2.0", "method": "a:b", "timeout_s": -1, "id": 4}, -32602, 4, "timeout_s"),
        ({"jsonrpc": "2.0", "method": "$/cancel", "id": 4}, -32602, 4, "names no id"),
        ([], -32600, None, "1 to 128 calls, not 0"),
        ([{"jsonrpc": "2.0"}] * (MAX_BATCH + 1), -32600, None, "1 to 128 calls, not 129"),
    ],
)
def test_what_is_wrong_is_answered_in_kind(frame: Any, code: int, ident: Any, says: str) -> None:
    answer = refused(frame)
    assert (answer["id"], answer["error"]["code"]) == (ident, code)
    assert says in answer["error"]["message"]
    assert answer["error"]["data"]["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("params", [[1], {"key": "a"}])
def test_a_notification_with_wrong_params_or_options_is_passed_over(params: Any) -> None:
    frame = {"jsonrpc": "2.0", "method": "state:get", "params": params, "timeout_s": 0}
    assert parts(frame) == []


def test_a_number_out_of_range_is_answered_in_kind() -> None:
    line = b'{"jsonrpc":"2.0","method":"state:get","params":{"n":18446744073709551616},"id":"s"}'
    read = decode_call(line)
    assert isinstance(read, Rpc)
    (part,) = read.parts
    assert isinstance(part, RpcRefusal)
    answer = json.loads(part.line)
    assert (answer["id"], answer["error"]["code"]) == ("s", -32600)
    assert answer["error"]["data"]["details"]["reason"] == "integer_out_of_range"


def test_a_batch_is_its_parts_in_order() -> None:
    call = {"jsonrpc": "2.0", "method": "a:b", "id": 1}
    read = decode_call(dumps([call, 1, {"foo": "boo"}, {**call, "params": [1]}]))
    assert isinstance(read, Rpc)
    assert read.batch
    assert [type(part) for part in read.parts] == [RpcCall, RpcRefusal, RpcRefusal, RpcRefusal]


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","method":"foobar","params":"bar","baz]',
        b'[{"jsonrpc":"2.0","method":"a:b"},{"jsonrpc"',
        b"[1]",
        b"[1,2,3]",
        b'["jsonrpc"]',
        b'{"method":"a:b","id":1}',
    ],
)
def test_what_has_no_shape_is_answered_as_ksi_does(line: bytes) -> None:
    assert isinstance(decode_call(line), Malformed)


def test_ksis_own_frames_are_not_taken_for_it() -> None:
    assert isinstance(decode_call(b'{"event":"a:b","jsonrpc":"2.0","method":"c:d"}'), Call)
    assert isinstance(decode_call(b'{"type":"cancel","id":1}'), Cancel)
    assert not is_rpc({"event": "a:b", "jsonrpc": "2.0"})
    assert not is_rpc("jsonrpc")


def test_a_cancel_names_the_call() -> None:
    (part,) = parts({"jsonrpc": "2.0", "method": "$/cancel", "params": {"id": "s"}})
    assert isinstance(part, RpcCancel)
    assert (part.id, part.notification) == ("s", True)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (Reply("x", "a:b", {"n": 1}), {"id": 7, "result": {"n": 1}}),
        (End("x"), {"id": 7, "result": None}),
        (Item("x", {"n": 1}), {"method": "$/item", "params": {"id": 7, "data": {"n": 1}}}),
        (
            Item("x", {"n": 1}, "cur-1"),
            {"method": "$/item", "params": {"id": 7, "data": {"n": 1}, "cursor": "cur-1"}},
        ),
        (
            Mark("x", "gap", "cur-2", {"reason": "overflow"}),
            {"method": "$/gap", "params": {"id": 7, "cursor": "cur-2", "reason": "overflow"}},
        ),
    ],
)
def test_an_answer_is_rendered_for_its_caller(answer: Answer, wanted: dict[str, Any]) -> None:
    assert json.loads(render(answer, 7)) == {"jsonrpc": "2.0", **wanted}


def test_an_error_has_everything_that_ksis_own_has() -> None:
    error = InvalidArgument("no such field", hint="look", reason="unknown_field", field="kye")
    answer = json.loads(render(Failure("x", error, "cor"), "id"))
    assert answer == {
        "jsonrpc": "2.0",
        "id": "id",
        "error": {
            "code": -32602,
            "message": "no such field",
            "data": {
                "code": "INVALID_ARGUMENT",
                "details": {"reason": "unknown_field", "field": "kye"},
                "retryable": False,
                "hint": "look",
                "correlation_id": "cor",
            },
        },
    }


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_each_code_has_one_of_its_own(error: type[KSIError]) -> None:
    code = json.loads(render(Failure("x", error("no")), 1))["error"]["code"]
    assert code == CODES[error.code]
    assert list(CODES.values()).count(code) == 1
    assert code in {-32602, -32603} or -32099 <= code <= -32000


def test_an_unknown_event_is_a_method_that_is_not_found() -> None:
    error = NotFound("no plugin handles it", reason="unknown_event")
    assert json.loads(render(Failure("x", error), 1))["error"]["code"] == -32601


@pytest.mark.parametrize("ident", [1, 'a "b"', 1.5, None])
def test_an_item_of_the_log_is_passed_on_as_it_is(ident: RpcId) -> None:
    frame = {"id": "f", "type": "item", "cursor": "log-7", "data": {"event": "a:b", "data": {"data": "é"}}}
    answer = answer_from_wire(frame)
    assert answer is not None
    assert render_item(dumps(frame), ident) == render(answer, ident)


def test_data_of_an_item_may_be_nested_deeper_than_orjson_writes() -> None:
    deep = b'{"a":%b%b}' % (b"[" * 300, b"]" * 300)
    line = render_item(b'{"id":"f","type":"item","cursor":"log-7","data":%b}' % deep, 1)
    assert line == b'{"jsonrpc":"2.0","method":"$/item","params":{"id":1,"data":%b,"cursor":"log-7"}}' % deep
