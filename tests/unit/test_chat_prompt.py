"""The prompt: words and what is piped in; in a file where it is large."""

import os
from pathlib import Path
from threading import Thread

import pytest

from ksi_client.chat import prompt
from ksi_client.chat.prompt import Prompt, joined, read_piped
from ksi_common.errors import FailedPrecondition, InvalidArgument


@pytest.mark.parametrize(
    ("words", "piped", "question"),
    [
        ("sum up", "a\nb", "sum up\n\na\nb"),
        ("sum up", "", "sum up"),
        (None, "a", "a"),
        (" ", "\n", ""),
        (None, "", ""),
    ],
)
def test_what_is_piped_in_stands_below_the_words(words: str | None, piped: str, question: str) -> None:
    assert joined(words, piped) == question


def piped(data: bytes, *, quiet_s: float = 5.0) -> tuple[str, int]:
    reading, writing = os.pipe()
    waited = []

    def waiting() -> None:
        waited.append(1)
        os.write(writing, data)
        os.close(writing)

    if quiet_s:
        waiting()
        waited.clear()
    with os.fdopen(reading, "rb") as stdin:
        return read_piped(stdin, waiting=waiting, quiet_s=quiet_s), len(waited)


def test_stdin_is_read_to_its_end_without_the_last_line_ends() -> None:
    assert piped("ä\nb\n\n".encode()) == ("ä\nb", 0)


def test_stdin_that_is_quiet_is_waited_for_and_that_is_said() -> None:
    assert piped(b"late", quiet_s=0.0) == ("late", 1)


def test_stdin_that_does_not_block_is_waited_for_all_the_same() -> None:
    """As a pipe of Node.js may be: what had not come yet was no part of the question, or a TypeError."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(b"x" * 1_000_000)

    writer = Thread(target=write)
    with os.fdopen(reading, "rb") as stdin:
        question = read_piped(stdin, waiting=writer.start, quiet_s=0.0)
    writer.join()
    assert len(question) == 1_000_000


def test_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert piped(b"caf\xe9\n") == ("caf\ufffd", 0)


def test_more_than_the_daemon_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "MAX_BYTES", 4)
    with pytest.raises(InvalidArgument, match="stdin has more than"):
        piped(b"12345")


def test_stdin_that_cannot_be_read_is_an_error() -> None:
    with (
        os.fdopen(os.open(os.devnull, os.O_WRONLY), "rb") as stdin,
        pytest.raises(FailedPrecondition, match="cannot read stdin: Bad file descriptor"),
    ):
        read_piped(stdin, waiting=lambda: None)


def test_a_short_prompt_is_sent_as_it_is(tmp_path: Path) -> None:
    with Prompt("hi", tmp_path / "prompts", "r1").fields() as fields:
        assert fields == {"prompt": "hi"}
    assert not (tmp_path / "prompts").exists()


LARGE = "a word " * 50_000


def test_a_large_prompt_is_in_a_file_of_its_owner_while_it_is_asked(tmp_path: Path) -> None:
    made = Prompt(LARGE, tmp_path / "lib" / "prompts", "r1")
    for _ in range(2):  # it may have to be asked again
        with made.fields() as fields:
            path = Path(fields["prompt_file"])
            assert path == tmp_path / "lib" / "prompts" / "chat-r1.txt"
            assert (path.read_text(), path.stat().st_mode & 0o777) == (LARGE, 0o600)
            made.discard()
            assert not path.exists()
        assert not path.exists()


def test_a_prompt_whose_json_is_large_is_sent_by_file(tmp_path: Path) -> None:
    with Prompt("\x01" * 50_000, tmp_path, "r1").fields() as fields:
        assert list(fields) == ["prompt_file"]


def test_a_link_in_the_place_of_the_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "chat-r1.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match="cannot write"), Prompt(LARGE, tmp_path, "r1").fields():
        pass
    assert not (tmp_path / "elsewhere").exists()
