"""What `ksi` writes is harmless to a terminal, and regular in a pipe."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_client.cli.invocation import Format, Invocation, begin, wants_color
from ksi_client.cli.safety import json_visible, one_line, visible
from ksi_client.cli.writing import write_fields, write_json, write_rows

HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\u202eabc\u2066\r"


@given(st.text() | st.sampled_from([HOSTILE]))
def test_nothing_that_moves_a_cursor_is_left(text: str) -> None:
    for made in (visible(text), one_line(text), json_visible(json.dumps(text, ensure_ascii=False))):
        assert not any(ord(char) < 32 and char not in "\t\n" for char in made)
        assert not any(0x7F <= ord(char) <= 0x9F or char in "\u202e\u2066\u200f\u2028" for char in made)
    assert not set(one_line(text)) & {"\t", "\n"}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_means_the_same_afterwards(text: str) -> None:
    assert json.loads(json_visible(json.dumps(text, ensure_ascii=False))) == text


def test_escapes_are_shown_not_dropped() -> None:
    assert one_line("a\x1b[1mb\nc") == "a\\x1b[1mb\\nc"


def output(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_plain_fields_are_separated_by_a_tab(capsys: pytest.CaptureFixture[str]) -> None:
    write_fields(Invocation(format="plain"), {"text": "a\nb", "n": 1, "none": None})
    assert output(capsys) == ["text\ta\\nb", "n\t1", "none\tnull"]


def test_each_of_many_objects_has_a_plain_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    checks = {"disk": {"status": "healthy"}, "database": {"status": "degraded"}}
    reply = {
        "rows": [{"a": 1}, {"b": []}],
        "checks": checks,
        "none": [],
        "words": ["x", "y"],
        "one": {"k": 1},
    }
    write_fields(Invocation(format="plain"), reply)
    assert output(capsys) == [
        'rows\t{"a":1}',
        'rows\t{"b":[]}',
        'checks.disk\t{"status":"healthy"}',
        'checks.database\t{"status":"degraded"}',
        "none\t[]",
        'words\t["x","y"]',
        'one\t{"k":1}',
    ]


def test_fields_in_a_table_are_aligned_and_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    write_fields(Invocation(format="table"), {"text": "a\nb", "longer": HOSTILE[:6]})
    assert output(capsys) == ["text    a", "        b", "longer  \\x1b]52;c"]


def test_a_list_of_rows_is_a_table_of_its_own_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "a\x1b", "size": 1}, {"name": "b", "size": None}]
    reply = {"rows": rows, "total": 2, "mixed": [{"a": 1}, {"b": 1}], "deep": [{"a": []}], "none": []}
    write_fields(Invocation(format="table"), reply)
    assert output(capsys) == [
        "total  2",
        'mixed  [{"a":1},{"b":1}]',
        'deep   [{"a":[]}]',
        "none   []",
        "",
        "rows",
        "name   size",
        "a\\x1b  1",
        "b      null",
    ]


@pytest.mark.parametrize("format_", ["json", "jsonl"])
def test_fields_as_json_are_one_document(format_: Format, capsys: pytest.CaptureFixture[str]) -> None:
    write_fields(Invocation(format=format_), {"text": HOSTILE})
    text = capsys.readouterr().out
    assert json.loads(text) == {"text": HOSTILE}
    assert len(text.splitlines()) == (1 if format_ == "jsonl" else 3)


def test_rows_have_headings_in_a_table_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("state:get", "Read one value, which has a very long description here.")]
    write_rows(Invocation(format="table"), ("EVENT", "SUMMARY"), rows)
    write_rows(Invocation(format="plain"), ("EVENT", "SUMMARY"), rows)
    assert output(capsys) == [
        "EVENT      SUMMARY",
        "state:get  Read one value, which has a …",
        "state:get\tRead one value, which has a very long description here.",
    ]


def test_no_rows_are_a_table_of_headings(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Invocation(format="table"), ("EVENT",), [])
    assert output(capsys) == ["EVENT"]


def test_colours_are_written_where_they_are_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Invocation(format="table", color=True), ("EVENT",), [])
    assert output(capsys) == ["\x1b[1mEVENT\x1b[0m"]


def test_json_lines_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(Invocation(format="jsonl"), [1, {"a": 2}])
    assert output(capsys) == ['[1,{"a":2}]']


@pytest.mark.parametrize(
    ("environ", "is_terminal", "wanted"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"CLICOLOR_FORCE": "1"}, False, True),
        ({"CLICOLOR_FORCE": "0"}, False, False),
        ({"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_colour_depends_on_the_terminal_and_the_environment(
    environ: dict[str, str], is_terminal: bool, wanted: bool
) -> None:
    assert wants_color(environ, is_terminal=is_terminal) is wanted


@pytest.mark.parametrize(("named", "format_"), [("", "plain"), ("jsonl", "jsonl"), ("surprise", "plain")])
def test_the_environment_names_the_format(named: str, format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSI_OUTPUT", named)
    assert begin([]).format == format_


def test_what_names_a_file_that_is_no_utf8_is_json_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """As the error of a home whose path is none: it was a traceback in place of the error."""
    write_json(Invocation(format="jsonl"), {"error": {"message": "no \udcff", "paths": ["\udcff"], "n": 1}})
    (line,) = output(capsys)
    assert json.loads(line) == {"error": {"message": "no \\udcff", "paths": ["\\udcff"], "n": 1}}
