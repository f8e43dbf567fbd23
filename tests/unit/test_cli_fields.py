"""How words on the command line become an event's data."""

from typing import Any

import click
import pytest

from ksi_client.cli.fields import alternatives, read_words
from ksi_common.events import event, state
from ksi_common.messages import Message


def data(*words: str, schema: dict[str, Any] | None = None, stdin: bytes = b"") -> dict[str, Any]:
    return read_words(words, lambda: stdin).data(schema or {})


def data_of(cls: type[Message], *words: str) -> dict[str, Any]:
    return data(*words, schema=cls.model_json_schema())


def test_a_word_with_an_equals_sign_is_a_string() -> None:
    assert data("a=1", "b=x=y", "c=") == {"a": "1", "b": "x=y", "c": ""}


def test_a_word_with_colon_equals_is_json() -> None:
    assert data("a:=1", 'b:={"c": [null]}', "d:=true") == {"a": 1, "b": {"c": [None]}, "d": True}


def test_a_dash_is_an_object_on_stdin_that_words_override() -> None:
    assert data("-", "a=2", stdin=b'{"a": 1, "b": 2}') == {"a": "2", "b": 2}


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (["color"], b"", "'color' is neither key=text nor key:=json"),
        (["=x"], b"", "'=x' is neither"),
        ([":=1"], b"", "':=1' is neither"),
        (["a:={"], b"", "a:={: not JSON at byte"),
        (["-"], b"[1]", "stdin must be a JSON object"),
        (["-"], b"{", "stdin: not JSON"),
        (["a:=9007199254740993"], b"", r"integer beyond ±2\^53"),
        (["a=1", "a=2"], b"", "a is given 2 times"),
    ],
)
def test_words_that_say_nothing_are_a_usage_error(words: list[str], stdin: bytes, message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        data(*words, stdin=stdin, schema={"properties": {"a": {"type": "string"}}})


def test_a_text_stays_a_string_where_anything_is_taken() -> None:
    assert data_of(state.Set, "key=123", "value=123") == {"key": "123", "value": "123"}


def test_a_text_becomes_what_the_event_takes() -> None:
    given = data_of(event.Query, "limit=5", "reverse=false", "patterns=state:*", "stream=7")
    assert given == {"limit": 5, "reverse": False, "patterns": ["state:*"], "stream": "7"}


def test_a_list_is_given_as_json_or_word_by_word() -> None:
    assert data_of(event.Query, 'patterns=["a:*", "b:*"]') == {"patterns": ["a:*", "b:*"]}
    assert data_of(event.Query, "patterns=a:*", "patterns=b:*") == {"patterns": ["a:*", "b:*"]}


def test_an_object_is_read_where_it_is_one_of_several_choices() -> None:
    start = 'start={"cursor": "x-1"}'
    assert data_of(event.Subscribe, "patterns=a:*", start)["start"] == {"cursor": "x-1"}
    assert data_of(event.Subscribe, "patterns=a:*", "start=beginning")["start"] == "beginning"


def test_a_number_is_read_where_the_only_strings_are_other_words() -> None:
    assert data_of(event.Append, "expected_version=3")["expected_version"] == 3
    assert data_of(event.Append, "expected_version=none")["expected_version"] == "none"


def test_a_text_that_does_not_fit_is_left_for_the_daemon_to_refuse() -> None:
    assert data_of(event.Query, "limit=many", "limitt=5") == {"limit": "many", "limitt": "5"}


def test_booleans_are_no_numbers() -> None:
    assert data("n=true", schema={"properties": {"n": {"type": "integer"}}}) == {"n": "true"}


def test_a_choice_that_takes_anything_takes_text() -> None:
    assert alternatives({"anyOf": [{"type": "integer"}, {}]}, {}) == []


def test_an_argument_that_is_no_utf8_is_a_usage_error_and_no_traceback() -> None:
    """The shell gives the bytes of a file's name as they are; Python has surrogates for them."""
    with pytest.raises(click.UsageError, match=r"^a:=\\udcff: not UTF-8 at byte 0$"):
        data("a:=\udcff")
    assert data("a=\udcff", schema={"properties": {"a": {"type": "integer"}}}) == {"a": "\udcff"}
