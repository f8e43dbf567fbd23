"""Bytes become frames; what is malformed becomes one answer, and ends the connection only where it must."""

from typing import Any

import pytest

from ksi_common.frame_fields import MAX_ID
from ksi_common.frames import Call, Cancel, Item, Reply
from ksi_common.protocol import (
    MAX_ANSWER,
    MAX_LINE,
    ClientConnection,
    LineReader,
    LineTooLong,
    Malformed,
    ServerConnection,
    decode_call,
)
from ksi_common.strict_json import dumps

OPTIONS = ("correlation_id", "causation_id", "idempotency_key", "traceparent")


def called(line: bytes) -> Call:
    frame = decode_call(line)
    assert isinstance(frame, Call)
    return frame


def malformed(line: bytes) -> Malformed:
    frame = decode_call(line)
    assert isinstance(frame, Malformed)
    return frame


def test_a_line_needs_nothing_but_an_event() -> None:
    call = called(b'{"event":"system:health"}')
    assert (call.event, call.data, call.id) == ("system:health", {}, None)


def test_an_id_may_be_a_string_or_an_integer() -> None:
    assert called(b'{"event":"a:b","id":"7"}').id == "7"
    assert called(b'{"event":"a:b","id":7}').id == 7
    assert called(b'{"event":"a:b","id":null}').id is None


@pytest.mark.parametrize("beside", [{}, {"data": {}}, {"id": 1}, {"data": {}, "id": 1}])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_read_whatever_else_the_line_has(name: str, beside: dict[str, Any]) -> None:
    call = called(dumps({"event": "a:b", name: "x", **beside}))
    assert getattr(call, name) == "x"


def test_a_timeout_is_in_seconds() -> None:
    assert called(b'{"event":"a:b","timeout_s":3}').timeout_s == 3.0
    assert called(b'{"event":"a:b","timeout_s":null}').timeout_s is None
    assert called(b'{"event":"a:b","timeout_s":1e308}').timeout_s == 1e9


def test_unknown_fields_of_a_line_are_ignored() -> None:
    assert called(b'{"event":"a:b","colour":1,"type":"request"}').event == "a:b"
    assert called(b'{"event":"a:b","type":["request"]}').event == "a:b"


def test_a_cancel_names_what_to_stop() -> None:
    frame = decode_call(b'{"type":"cancel","id":"7"}')
    assert isinstance(frame, Cancel)
    assert frame.id == "7"


@pytest.mark.parametrize(
    ("line", "reason", "field"),
    [
        (b"{}", "missing", "event"),
        (b'{"type":"other"}', "missing", "event"),
        (b'{"type":[]}', "missing", "event"),
        (b'{"type":{}}', "missing", "event"),
        (b"[1]", "wrong_type", ""),
        (b'"s"', "wrong_type", ""),
        (b"1", "wrong_type", ""),
        (b"null", "wrong_type", ""),
        (b'{"event":7}', "wrong_type", "event"),
        (b'{"event":null}', "wrong_type", "event"),
        (b'{"event":"a:b","data":null}', "wrong_type", "data"),
        (b'{"event":"a:b","data":[1]}', "wrong_type", "data"),
        (b'{"event":"a:b","id":true}', "wrong_type", "id"),
        (b'{"event":"a:b","id":1.5}', "wrong_type", "id"),
        (b'{"event":"a:b","id":{}}', "wrong_type", "id"),
        (b'{"event":"a:b","correlation_id":""}', "wrong_type", "correlation_id"),
        (b'{"event":"a:b","idempotency_key":7}', "wrong_type", "idempotency_key"),
        (b'{"event":"a:b","timeout_s":0}', "wrong_type", "timeout_s"),
        (b'{"event":"a:b","timeout_s":"1"}', "wrong_type", "timeout_s"),
        (b'{"event":"a:b","timeout_s":true}', "wrong_type", "timeout_s"),
        (b'{"type":"cancel"}', "missing", "id"),
        (b'{"type":"cancel","id":null}', "wrong_type", "id"),
    ],
)
def test_a_wrong_frame_is_refused_by_its_field_and_the_connection_stays(
    line: bytes, reason: str, field: str
) -> None:
    frame = malformed(line)
    assert frame.error.details["reason"] == reason
    assert frame.error.details["field"] == field
    assert not frame.fatal


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"null", "data must be an object, not null"),
        (b"[]", "data must be an object, not array"),
        (b'""', "data must be an object, not string"),
        (b"1.5", "data must be an object, not number"),
        (b"true", "data must be an object, not boolean"),
    ],
)
def test_types_are_called_what_json_calls_them(value: bytes, text: str) -> None:
    assert malformed(b'{"event":"a:b","data":%b}' % value).error.message == text


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("timeout_s", 0, "timeout_s must be a number of seconds above 0, not 0"),
        ("timeout_s", "5", "timeout_s must be a number of seconds above 0, not string"),
        ("id", "x" * 129, "id must be a string of at most 128 characters or an integer, not one of 129"),
        ("correlation_id", "", "correlation_id must be a string of 1 to 128 characters, not one of 0"),
    ],
)
def test_what_has_the_right_type_is_not_said_to_have_the_wrong_one(
    field: str, value: object, text: str
) -> None:
    assert malformed(dumps({"event": "a:b", field: value})).error.message == text


def test_an_id_that_can_be_read_is_answered_under() -> None:
    assert malformed(b'{"event":7,"id":"x"}').id == "x"
    assert malformed(b'{"id":3}').id == 3
    assert malformed(b'{"event":"a:b","id":[1]}').id is None
    assert malformed(dumps({"id": "x" * (MAX_ID + 1)})).id is None


def test_an_id_beside_json_that_is_refused_is_answered_under() -> None:
    deep = b"[" * 100 + b"]" * 100
    for data in (b'{"n":9007199254740993}', b'{"n":%b}' % deep):
        assert malformed(b'{"id":"x","event":"a:b","data":%b}' % data).id == "x"
    for line in (b'{"id":"x","n":NaN}', b'[{"id":"x"},9007199254740993]'):
        assert malformed(line).id is None


def test_an_id_has_a_limit() -> None:
    assert called(dumps({"event": "a:b", "id": "x" * MAX_ID})).id == "x" * MAX_ID
    assert malformed(dumps({"event": "a:b", "id": "x" * (MAX_ID + 1)})).error.details["field"] == "id"


def test_only_bytes_that_are_not_utf8_end_the_connection() -> None:
    assert malformed(b'{"event":"\xff"}').fatal
    assert not malformed(b"not json").fatal
    assert not malformed(b"").fatal


def test_nothing_follows_a_fatal_line() -> None:
    frames = list(ServerConnection().receive(b'{"event":"a:b"}\n\xff\n{"event":"c:d"}\n'))
    assert [type(frame) for frame in frames] == [Call, Malformed]


def test_a_line_of_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    def line(size: int) -> bytes:
        frame = b'{"event":"a:b","data":{"x":"%b"}}'
        return frame % (b"x" * (size - len(frame) + 2)) + b"\n"

    (frame,) = ServerConnection().receive(line(MAX_LINE))
    assert isinstance(frame, Call)
    (frame,) = ServerConnection().receive(line(MAX_LINE + 1))
    assert isinstance(frame, Malformed)
    assert frame.fatal
    assert frame.error.details == {"reason": "too_large", "limit": MAX_LINE}


def test_the_limit_that_is_told_is_the_one_in_force() -> None:
    (frame,) = ServerConnection(max_line=64).receive(b"x" * 65)
    assert isinstance(frame, Malformed)
    assert frame.error.details["limit"] == 64
    assert "64 bytes" in frame.error.message


def test_a_line_over_the_limit_is_refused_before_it_ends() -> None:
    connection = ServerConnection(max_line=10)
    assert list(connection.receive(b"12345678")) == []
    (frame,) = connection.receive(b"901")
    assert isinstance(frame, Malformed)
    assert frame.fatal


@pytest.mark.parametrize("long", [b"x" * 65 + b"\n", b"x" * 65, b"x" * 65 + b"\n{}\n"])
def test_what_comes_before_a_line_that_is_too_long_is_still_read(long: bytes) -> None:
    frames = list(ServerConnection(max_line=64).receive(b'{"event":"a:b"}\n{"event":"c:d"}\n' + long))
    assert [type(frame) for frame in frames] == [Call, Call, Malformed]


def test_a_partial_line_is_known_to_be_one() -> None:
    connection = ServerConnection()
    partial = [connection.partial]
    for piece in (b'{"event":', b'"a:b"}', b"\n", b"{}\n{", b"}\n"):
        list(connection.receive(piece))
        partial.append(connection.partial)
    assert partial == [False, True, True, False, True, False]


def test_windows_line_ends_are_taken() -> None:
    (frame,) = ServerConnection().receive(b'{"event":"a:b"}\r\n')
    assert isinstance(frame, Call)


def test_an_empty_line_gets_its_answer_too() -> None:
    (frame,) = ServerConnection().receive(b"\n")
    assert isinstance(frame, Malformed)
    assert frame.error.details["position"] == 0


def test_a_client_reads_answers_in_order() -> None:
    connection = ClientConnection()
    line = b'{"id":1,"type":"item","data":{}}\n{"id":1,"type":"reply","event":"a:b","data":{}}\n'
    answers = [answer for byte in line for answer in connection.receive(bytes([byte]))]
    assert [type(answer) for answer in answers] == [Item, Reply]


def test_a_client_takes_lines_of_two_mebibytes_and_no_more() -> None:
    start, end = b'{"id":1,"type":"item","data":{"x":"', b'"}}\n'
    filler = b"x" * (MAX_ANSWER - len(start) - len(end) + 1)
    assert len(ClientConnection().receive(start + filler + end)) == 1
    with pytest.raises(LineTooLong):
        ClientConnection().receive(start + filler + b"x" + end)


def test_empty_pieces_change_nothing() -> None:
    reader = LineReader(100)
    pieces = [b"", b"a", b"", b"b\n", b"", b"c\n"]
    assert [line for piece in pieces for line in reader.feed(piece)] == [b"ab", b"c"]
