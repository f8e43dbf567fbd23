"""JSON that a second parser could read differently is refused, with the place and the reason."""

import tracemalloc
from typing import Any

import pytest

from ksi_common.errors import InvalidArgument
from ksi_common.strict_json import MAX_DEPTH, MAX_INTEGER, MAX_KEYS, dumps, loads


def refusal(text: bytes) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as raised:
        loads(text)
    return raised.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"{}", {}),
        (b"[1]", [1]),
        (b'"s"', "s"),
        (b"null", None),
        (b"-0", 0),
        (b' {"a" : 1}\r', {"a": 1}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'{"__class__":"x"}', {"__class__": "x"}),
        (b'"\\u0000"', "\0"),
        (b'"\\ud83d\\ude00"', "😀"),
        (b"9007199254740993.0", 9007199254740992.0),
        (b"0.12345678901234567890", 0.12345678901234568),
        (b"12345678901234567890e0", 12345678901234567890.0),
    ],
)
def test_json_is_read(text: bytes, value: object) -> None:
    assert loads(text) == value


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (b"", 0),
        (b"not json", 0),
        (b"NaN", 0),
        (b"[Infinity]", 1),
        (b"[1e999]", 1),
        (b"9" * 5000, 0),
        (b"{}{}", 2),
        (b'"a\0b"', 2),
        (b'{"a":1,}', 6),
        (b'"\\ud800"', 1),
        (b"\xef\xbb\xbf{}", 0),
        ('{"é":x}'.encode(), 6),
    ],
)
def test_what_is_no_json_is_refused_with_its_byte(text: bytes, position: int) -> None:
    error = refusal(text)
    assert error.details == {"reason": "malformed", "position": position}
    assert error.message.startswith(f"not JSON at byte {position}: ")
    assert error.hint is not None


@pytest.mark.parametrize(("text", "position"), [(b'"\xff"', 1), (b'{"a":"\xed\xa0\x80"}', 6), (b"\x80", 0)])
def test_bytes_that_are_not_utf8_are_told_apart(text: bytes, position: int) -> None:
    assert refusal(text).details == {"reason": "not_utf8", "position": position}


@pytest.mark.parametrize("value", [MAX_INTEGER, -MAX_INTEGER, MAX_INTEGER - 1])
def test_the_largest_integers_are_read(value: int) -> None:
    assert loads(b"[%d]" % value) == [value]


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (b"%d" % (MAX_INTEGER + 1), 0),
        (b"%d" % (-MAX_INTEGER - 1), 0),
        (b"18446744073709551616", 0),
        (b"[-18446744073709551616]", 1),
        (b"[1,0.1234567890123456,9007199254740993]", 22),
        (b'{"a":"12345678901234567890","b":12345678901234567890}', 32),
        (b'["\\"",9007199254740993]', 6),
        (b'["\\\\",9007199254740993]', 6),
        (b"1" * 300, 0),
    ],
)
def test_an_integer_that_would_be_rounded_is_refused_with_its_byte(text: bytes, position: int) -> None:
    assert refusal(text).details == {"reason": "integer_out_of_range", "position": position}


@pytest.mark.parametrize(
    "value", ["12345678901234567890", '"12345678901234567890', "\\12345678901234567890", "1" * 5000]
)
def test_digits_within_a_string_are_left_alone(value: str) -> None:
    assert loads(dumps({"a": value, value: 1})) == {"a": value, value: 1}


def peak(text: bytes) -> int:
    tracemalloc.start()
    try:
        loads(text)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\n" * 500_000])
def test_digits_beside_a_long_string_cost_no_memory_of_their_own(text: str) -> None:
    assert peak(dumps([text, "1234567890123456"])) < 1.2 * peak(dumps([text, ""]))


def nested(depth: int, start: bytes, end: bytes) -> bytes:
    return start * depth + b"0" + end * depth


@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_has_a_limit(start: bytes, end: bytes) -> None:
    loads(nested(MAX_DEPTH, start, end))
    for depth in (MAX_DEPTH + 1, 1000, 10_000, 100_000):
        assert refusal(nested(depth, start, end)).details == {"reason": "too_deep", "limit": MAX_DEPTH}


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert len(loads(b"[" + b",".join([b"[[]]"] * 1000) + b"]")) == 1000


def test_the_keys_of_one_object_have_a_limit() -> None:
    def wide(keys: int) -> bytes:
        return dumps({"data": {str(key): 0 for key in range(keys)}})

    loads(wide(MAX_KEYS))
    assert refusal(wide(MAX_KEYS + 1)).details == {"reason": "too_many_keys", "limit": MAX_KEYS}


def test_many_keys_of_many_objects_are_no_wide_object() -> None:
    value: Any = [{"a": 1}] * (MAX_KEYS + 1)
    assert loads(dumps(value)) == value
