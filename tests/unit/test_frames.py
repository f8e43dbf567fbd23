"""Frames are rendered as the wire has them, and read back as they were."""

from typing import Any, get_args

import pytest

from ksi_common.errors import Cancelled, KSIError, NotFound, ResourceExhausted
from ksi_common.frames import (
    Answer,
    Call,
    Cancel,
    End,
    Failure,
    Item,
    Mark,
    MarkKind,
    Reply,
    answer_from_wire,
    end_line,
    error_line,
    item_line,
    mark_line,
    reply_line,
)
from ksi_common.strict_json import loads


def read(line: bytes) -> Answer:
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    answer = answer_from_wire(loads(line))
    assert answer is not None
    return answer


def test_a_call_has_what_was_given_and_nothing_else() -> None:
    assert loads(Call("state:get", {"key": "a"}).encode()) == {"event": "state:get", "data": {"key": "a"}}


def test_a_call_has_all_its_options() -> None:
    options: dict[str, Any] = {
        "id": 7,
        "correlation_id": "c",
        "causation_id": "d",
        "timeout_s": 1.5,
        "idempotency_key": "k",
        "traceparent": "t",
    }
    assert loads(Call("a:b", {}, **options).encode()) == {"event": "a:b", "data": {}, **options}


def test_a_cancel_names_its_call() -> None:
    assert Cancel("7").encode() == b'{"type":"cancel","id":"7"}\n'


def test_a_reply_is_read_back() -> None:
    line = reply_line(b'"7"', b'"state:get"', b'{"value":1}', b'"c"', b"2026-01-01T00:00:00Z")
    reply = read(line)
    assert isinstance(reply, Reply)
    assert (reply.id, reply.event, reply.data) == ("7", "state:get", {"value": 1})
    assert (reply.correlation_id, reply.timestamp) == ("c", "2026-01-01T00:00:00Z")


def test_an_item_and_the_end_are_read_back() -> None:
    item, end = read(item_line(b"7", b'{"n":1}')), read(end_line(b"7"))
    assert isinstance(item, Item)
    assert (item.id, item.data, item.cursor) == (7, {"n": 1}, None)
    assert isinstance(end, End)
    assert end.id == 7


@pytest.mark.parametrize("kind", get_args(MarkKind))
def test_a_mark_is_read_back_with_its_fields(kind: Any) -> None:
    mark = read(mark_line(b'"s"', kind, "log-5", {"reason": "overflow", "dropped": 3}))
    assert isinstance(mark, Mark)
    assert (mark.id, mark.kind, mark.cursor) == ("s", kind, "log-5")
    assert mark.fields == {"reason": "overflow", "dropped": 3}


def test_an_error_is_read_back_with_its_class() -> None:
    error = ResourceExhausted("full", hint="wait", reason="full", retry_after_s=0.5)
    failure = read(error_line(b"null", error, "c"))
    assert isinstance(failure, Failure)
    assert (failure.id, failure.correlation_id) == (None, "c")
    assert type(failure.error) is ResourceExhausted
    assert failure.error.to_wire() == error.to_wire()


def test_an_error_without_a_correlation_id_has_no_such_field() -> None:
    assert b"correlation_id" not in error_line(b"1", Cancelled("x"))


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no file \udcff", hint="\ud800"),
        NotFound("x", path="\udcff"),
        NotFound("x", size=2**80),
        NotFound("x", by_number={1: "one"}),
        NotFound("x", what=object()),
        NotFound("x", what={object(): float("nan")}),
    ],
)
def test_an_error_is_told_whatever_its_author_put_into_it(error: KSIError) -> None:
    failure = read(error_line(b"1", error))
    assert isinstance(failure, Failure)
    assert type(failure.error) is NotFound
    assert failure.error.message
    assert failure.error.details.keys() == error.details.keys()


@pytest.mark.parametrize("kind", ["replies", None, 7])
def test_an_unknown_frame_type_is_passed_over(kind: object) -> None:
    assert answer_from_wire({"type": kind, "id": 1}) is None
