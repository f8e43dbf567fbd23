"""strict_json reads what json reads, the same; what it refuses beyond that is what it says it refuses."""

import json
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ksi_common.errors import InvalidArgument
from ksi_common.strict_json import MAX_INTEGER, dumps, loads

texts = st.text(st.characters(exclude_categories=["Cs"]))
integers = st.integers(-MAX_INTEGER, MAX_INTEGER)
too_large = st.integers(min_value=MAX_INTEGER + 1) | st.integers(max_value=-MAX_INTEGER - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | integers | floats | texts | integers.map(str) | too_large.map(str)


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=12,
    )


def exactly(value: object) -> str:
    """Tell 1 from 1.0 and True, which Python holds to be equal."""
    return repr(value)


@st.composite
def renderings(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    text = json.dumps(
        draw(values),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 2])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\n:\r")])),
    )
    return text.encode()


@given(renderings(trees(scalars)))
def test_every_rendering_is_read_as_json_reads_it(text: bytes) -> None:
    assert exactly(loads(text)) == exactly(json.loads(text))


@given(trees(scalars))
def test_what_is_written_is_read_back(value: object) -> None:
    assert exactly(loads(dumps(value))) == exactly(value)


@given(renderings(trees(scalars)), st.data())
def test_a_damaged_text_is_refused_or_read_as_json_reads_it(text: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 3)))
    piece = data.draw(
        st.binary(max_size=3) | st.text('0123456789eE+-.[]{},:"\\ n', max_size=3).map(str.encode)
    )
    damaged = text[:start] + piece + text[end:]
    try:
        value = loads(damaged)
    except InvalidArgument:
        return
    assert exactly(value) == exactly(json.loads(damaged))


@given(too_large, renderings(trees(st.just("@") | scalars)))
def test_an_integer_beyond_the_limit_is_refused_wherever_it_stands(number: int, text: bytes) -> None:
    assume(b'"@"' in text)
    where = text.rindex(b'"@"')
    damaged = text[:where] + b"%d" % number + text[where + 3 :]
    assume(is_value(damaged, number))
    with pytest.raises(InvalidArgument) as refused:
        loads(damaged)
    reason = refused.value.details["reason"]
    huge = len(str(number)) > 308 and math.isinf(float(f"{number}e0"))
    assert reason == ("malformed" if huge else "integer_out_of_range")


def is_value(text: bytes, number: int) -> bool:
    """Tell whether the number took the place of a value: not of a key, and not of a part of a string."""
    try:
        return contains(json.loads(text), number)
    except json.JSONDecodeError:
        return False


def contains(value: object, number: int) -> bool:
    match value:
        case dict():
            return any(contains(inner, number) for inner in value.values())
        case list():
            return any(contains(inner, number) for inner in value)
    return value == number
