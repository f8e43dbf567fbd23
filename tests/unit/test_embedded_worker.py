"""How a conversation is written for the embedded model, and cut where it is too long."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

from ksi_completion.workers import embedded
from ksi_completion.workers.embedded import (
    CONTEXT_TOKENS,
    END,
    LONGEST_TOKEN_BYTES,
    NEWLINE,
    START,
    Message,
    Prompt,
    Refused,
    compose,
)

SYSTEM = {"role": "system", "content": "Be kind."}


def encode(text: str) -> list[int]:
    """A token a word: of as many as the word has letters."""
    return [1000 + len(word) for word in text.split()]


def user(words: int) -> Message:
    return {"role": "user", "content": "word " * words}


def turn(words: int) -> Sequence[Message]:
    """What takes ``words`` tokens in all: half of them the user's, and 8 of the template."""
    return [user(words // 2 - 4), {"role": "assistant", "content": "said " * (words - words // 2 - 4)}]


def composed(*messages: Message, answer_tokens: int = 96) -> Prompt:
    return compose([SYSTEM, *messages], encode, answer_tokens=answer_tokens)


def test_only_the_template_begins_and_ends_messages() -> None:
    prompt = composed({"role": "user", "content": "Hi you"})
    assert prompt.tokens == [
        *(START, 1006, 1002, 1005, END, NEWLINE),
        *(START, 1004, 1002, 1003, END, NEWLINE),
        *(START, 1009),
    ]
    assert prompt.dropped_messages == 0


def test_the_oldest_turns_go_where_all_do_not_fit() -> None:
    turns = [turn(1000) for _ in range(5)]
    prompt = composed(*(message for each in turns for message in each), user(100))
    assert prompt.dropped_messages == 4
    assert prompt.tokens[:6] == [START, 1006, 1002, 1005, END, NEWLINE], "the system's message stays"
    assert len(prompt.tokens) == 6 + 3 * 1000 + 104 + 2


def test_room_is_left_for_the_answer() -> None:
    turns = [turn(1000) for _ in range(3)]
    conversation = [message for each in turns for message in each]
    most = CONTEXT_TOKENS - 6 - 3000 - 104 - 2
    assert composed(*conversation, user(100), answer_tokens=most).dropped_messages == 0
    assert composed(*conversation, user(100), answer_tokens=most + 1).dropped_messages == 2


def test_an_answer_of_any_length_leaves_half_to_the_conversation() -> None:
    prompt = composed(*turn(1000), *turn(1000), user(100), answer_tokens=100_000)
    assert prompt.dropped_messages == 2
    assert len(prompt.tokens) > 1000


def test_the_last_message_alone_may_fill_the_context() -> None:
    template = 6 + 4 + 2
    assert len(composed(user(CONTEXT_TOKENS - template - 1)).tokens) == CONTEXT_TOKENS - 1
    with pytest.raises(Refused, match=f"{CONTEXT_TOKENS} tokens or more, and the model's context has 4096"):
        composed(*turn(1000), user(CONTEXT_TOKENS - template))


def test_a_text_that_cannot_fit_is_refused_without_counting() -> None:
    def never(text: str) -> list[int]:
        assert len(text) < CONTEXT_TOKENS
        return encode(text)

    text = "é" * (CONTEXT_TOKENS * LONGEST_TOKEN_BYTES // 2)
    with pytest.raises(Refused) as refused:
        compose([SYSTEM, {"role": "user", "content": text}], never, answer_tokens=96)
    assert refused.value.args[0] == "context_exceeded"
    history = [{"role": "user", "content": text}, {"role": "assistant", "content": "What?"}]
    assert compose([SYSTEM, *history, user(1)], never, answer_tokens=96).dropped_messages == 2


def test_old_turns_beyond_the_context_are_not_even_read() -> None:
    read: list[str] = []

    def reading(text: str) -> list[int]:
        read.append(text)
        return encode(text)

    history = [message for _ in range(500) for message in turn(1000)]
    compose([*history, user(100)], reading, answer_tokens=96)
    assert len(read) < 20


def test_a_long_conversation_begins_alike_for_many_requests() -> None:
    """What begins as before is in the model's cache: a cut in each request would be seconds in each."""
    conversation: list[Message] = []
    beginnings = []
    for number in range(60):
        prompt = composed(*conversation, user(50))
        beginnings.append(prompt.dropped_messages)
        assert len(prompt.tokens) > CONTEXT_TOKENS // 2 or number < 30
        conversation += turn(100)
    assert beginnings == sorted(beginnings)
    cuts = [number for number in range(1, 60) if beginnings[number] != beginnings[number - 1]]
    assert 0 < len(cuts) <= 6


def test_turns_of_great_length_are_cut_no_further_than_needed() -> None:
    turns = [turn(1200) for _ in range(4)]
    prompt = composed(*(message for each in turns for message in each), user(100))
    assert prompt.dropped_messages == 2


@pytest.mark.parametrize("messages", [[], [SYSTEM], [user(1), {"role": "assistant", "content": "Hi"}]])
def test_a_conversation_must_end_with_the_user(messages: Sequence[Message]) -> None:
    with pytest.raises(Refused, match="not the user's"):
        compose(messages, encode, answer_tokens=96)


def test_what_a_library_prints_is_no_report() -> None:
    script = """
import os, runpy, sys
worker = runpy.run_path(sys.argv[1])
with worker["_claim_stdout"]() as reports:
    print("printed", flush=True)
    os.write(1, b"written\\n")
    os.system("echo child")
    reports.write(b"report\\n")
"""
    command = [sys.executable, "-I", "-c", script, embedded.__file__]
    done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    assert done.stdout == b"report\n"
    assert done.stderr == b"printed\nwritten\nchild\n"
