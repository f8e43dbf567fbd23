"""What a run of chat.py is asked for."""

import click
import pytest

from ksi_client.chat.arguments import Wishes, parse, wants_json


def test_without_words_nothing_is_asked() -> None:
    assert parse([]) == Wishes()


def test_words_are_one_question() -> None:
    assert parse(["what", "is", "a log?"]) == Wishes(prompt="what is a log?")
    assert parse(["-p", "-5 + 3?"]) == Wishes(prompt="-5 + 3?")


def test_an_option_that_there_is_not_may_be_a_question_that_begins_with_a_dash() -> None:
    with pytest.raises(click.NoSuchOption) as caught:
        parse(["-begins so"])
    assert str(caught.value) == "No such option '-b'. A question that begins with - is given by -p."
    with pytest.raises(click.NoSuchOption) as caught:
        parse(["--promt", "x"])
    assert caught.value.format_message() == "No such option '--promt'. Did you mean '--prompt'?"


def test_every_option_is_a_wish() -> None:
    argv = ["-p", "hi", "-c", "--model", "m", "--provider", "p", "--system", "s", "--timeout", "2m"]
    assert parse([*argv, "--output-format", "json", "--no-start"]) == Wishes(
        prompt="hi",
        go_on=True,
        model="m",
        provider="p",
        system="s",
        format="json",
        may_start=False,
        timeout_s=120,
    )
    assert parse(["--session", "a.b"]) == parse(["--name", "a.b"]) == Wishes(name="a.b")


@pytest.mark.parametrize(
    "argv",
    [
        ["-p", "a", "b"],
        ["-c", "-r", "s"],
        ["-r", "s", "--name", "t"],
        ["-r", "../x"],
        ["--name", ""],
        ["--timeout", "soon"],
        ["--output-format", "yaml"],
    ],
)
def test_what_makes_no_sense_is_wrong_usage(argv: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(argv)


def test_a_session_that_is_not_allowed_is_told_what_is() -> None:
    with pytest.raises(click.UsageError, match=r"'\.\./x' is not allowed: letters, digits, \. _ -"):
        parse(["-r", "../x"])


def test_bytes_that_are_no_utf_8_do_not_travel() -> None:
    assert parse(["caf\udce9"]) == Wishes(prompt="caf\ufffd")


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--output-format", "json", "--nonsense"], True),
        (["--nonsense", "--output-format=stream-json"], True),
        (["--output-format", "text"], False),
        (["-p", "json"], False),
        ([], False),
    ],
)
def test_a_wrong_command_line_is_known_for_a_programs(argv: list[str], wanted: bool) -> None:
    assert wants_json(argv) is wanted


def test_help_leads_with_examples_and_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--help"]) is None
    text = capsys.readouterr().out
    assert '\n  python3 chat.py "What is an event log?"' in text.split("Options:")[0]
    assert "130 stopped by Ctrl-C" in text
