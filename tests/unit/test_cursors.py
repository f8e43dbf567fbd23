"""A cursor is read back as it was given, and nothing else is taken for one."""

import pytest

from ksi_common.errors import InvalidArgument
from ksi_daemon.cursors import Cursor, parse_cursor

ARABIC_THREE = "a-\u0663"


@pytest.mark.parametrize("cursor", [Cursor("a1b2", 0), Cursor("0", 9_007_199_254_740_992)])
def test_a_cursor_is_read_back(cursor: Cursor) -> None:
    assert parse_cursor(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "a",
        "a-",
        "-1",
        "a-b",
        "a--1",
        "a-1-2",
        "a-1.0",
        "a- 1",
        "a b-1",
        ARABIC_THREE,
        "a-1" + "0" * 16,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no cursor") as refused:
        parse_cursor(text)
    assert refused.value.details["reason"] == "bad_cursor"


def test_of_a_long_text_a_part_is_shown() -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_cursor("x" * 10_000)
    assert len(refused.value.message) < 100
