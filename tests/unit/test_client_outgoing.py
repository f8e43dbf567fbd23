"""What is refused before it is sent."""

from typing import Any

import pytest

from ksi_client.outgoing import encode, with_id
from ksi_common.errors import InvalidArgument
from ksi_common.frames import Call
from ksi_common.protocol import MAX_LINE, decode_call


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "not_finite"),
        ([1, (2, {"a": float("inf")})], "not_finite"),
        (2**53 + 1, "integer_out_of_range"),
        (2**70, "not_json"),
        ({1: 2}, "not_json"),
        ("\ud800", "not_json"),
        (object(), "not_json"),
        ("x" * MAX_LINE, "too_large"),
    ],
)
def test_a_value_that_cannot_cross_the_wire_unchanged_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        encode(Call("state:set", {"key": "a", "value": value}))
    assert caught.value.details["reason"] == reason


@pytest.mark.parametrize("timeout_s", [float("inf"), float("nan")])
def test_a_time_that_cannot_cross_the_wire_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidArgument, match="timeout_s of 'state:get'"):
        encode(Call("state:get", {"key": "a"}, timeout_s=timeout_s))


def test_a_value_nested_too_deeply_is_refused() -> None:
    value: Any = 0
    for _ in range(100):
        value = {"a": value}
    with pytest.raises(InvalidArgument) as caught:
        encode(Call("state:set", {"value": value}))
    assert caught.value.details["reason"] == "too_deep"


def test_null_is_a_value() -> None:
    assert encode(Call("state:set", {"value": None})) == b'{"event":"state:set","data":{"value":null}}\n'


def test_a_line_gets_its_id_when_it_is_sent() -> None:
    call = decode_call(with_id(encode(Call("state:get", {"key": "a"}, timeout_s=1.5)), 7))
    assert isinstance(call, Call)
    assert (call.event, call.data, call.id, call.timeout_s) == ("state:get", {"key": "a"}, 7, 1.5)


def test_the_largest_line_that_is_taken_here_is_taken_there() -> None:
    room = MAX_LINE - 32 - len(encode(Call("a:b", {"v": ""})))
    line = with_id(encode(Call("a:b", {"v": "x" * room})), 2**53)
    assert len(line) <= MAX_LINE
    with pytest.raises(InvalidArgument):
        encode(Call("a:b", {"v": "x" * (room + 1)}))
