"""How an answer is written."""

import io
import json
from collections.abc import Mapping

import pytest

from ksi_client.chat.answer import Answer
from ksi_client.chat.chatting import introduction
from ksi_client.chat.failures import NotStarted, code_of, code_of_answer, lines_of, lines_of_no_answer
from ksi_client.chat.screen import Screen
from ksi_client.chat.showing import Show, Typed, effort, notice_of, show
from ksi_client.chat.steps import Step
from ksi_client.control.wording import Exit, Outcome
from ksi_common.errors import KSIError, NotFound, ResourceExhausted, Unavailable
from tests.unit.test_chat_steps import step


class Stream(io.StringIO):
    """Text that may be a terminal's."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class Shown:
    """A screen whose text can be read."""

    def __init__(self, *, terminal: bool = True, environ: Mapping[str, str] | None = None) -> None:
        self.out = Stream(terminal=terminal)
        # On a terminal both are one.
        self.err = self.out if terminal else Stream(terminal=False)
        self.screen = Screen(self.out, self.err, environ or {"NO_COLOR": "1"})

    def answer(self, shown: Show, *steps: Step) -> str:
        """Show an answer; give what was written."""
        answer = Answer("r1")
        for heard in steps:
            answer.take(heard)
            shown.step(heard)
        shown.end(answer)
        return self.out.getvalue()


ACCEPTED = step("accepted", provider="embedded", model="m", position=0)
RESULT = step("result", text="one two", usage={"completion_tokens": 2}, duration_ms=1234)


def test_a_terminal_gets_the_text_as_it_comes_and_once() -> None:
    shown = Shown()
    typed = Typed(shown.screen)
    typed.step(step("delta", text="one "))
    assert shown.out.getvalue() == "one "
    typed.step(step("delta", text="two"))
    assert shown.answer(typed, RESULT) == "one two\n"


def test_what_no_delta_said_is_shown_at_the_end() -> None:
    shown = Shown()
    assert shown.answer(Typed(shown.screen), step("delta", text="one "), RESULT) == "one two\n"


def test_a_result_that_is_another_than_its_deltas_is_shown_whole() -> None:
    shown = Shown()
    assert shown.answer(Typed(shown.screen), step("delta", text="other"), RESULT) == (
        "other\nthe text above is not what was answered\none two\n"
    )


def test_a_conversation_names_who_speaks_and_what_it_took() -> None:
    shown = Shown()
    text = shown.answer(Typed(shown.screen, talking=True), ACCEPTED, step("delta", text="one two"), RESULT)
    assert text == "m ▸ one two\n    ·  2 tokens, 1.2 s\n"


def test_a_conversation_says_what_is_before_it() -> None:
    shown = Shown()
    waiting = step("accepted", model="m", position=2)
    text = shown.answer(Typed(shown.screen, talking=True), waiting, RESULT)
    assert text.startswith("2 of this session are before it\nm ▸ one two\n")
    one = Shown()
    text = one.answer(Typed(one.screen, talking=True), step("accepted", model="m", position=1), RESULT)
    assert text.startswith("1 of this session is before it\n")


def test_a_retry_is_told_on_a_line_of_its_own() -> None:
    retry = [step("retrying", attempt=1, reason="rate_limited", delay_s=2.0), step("started", attempt=2)]
    shown = Shown()
    assert shown.answer(Typed(shown.screen), step("delta", text="one"), *retry, RESULT) == (
        "one\nattempt 1 failed (rate limited); again in 2.0 s\nattempt 2: the text above is void\none two\n"
    )
    piped = Shown(terminal=False)
    assert piped.answer(show("text", piped.screen), *retry, RESULT) == "one two\n"
    assert piped.err.getvalue() == "attempt 1 failed (rate limited); again in 2.0 s\n"


@pytest.mark.parametrize(("delay_s", "said"), [(0.00005, "0.0 s"), (3600.0, "1 h 0 m")])
def test_a_retry_is_told_in_units_that_people_read(delay_s: float, said: str) -> None:
    notice = notice_of(step("retrying", attempt=1, reason="outage", delay_s=delay_s))
    assert notice == f"attempt 1 failed (outage); again in {said}"


def test_an_answer_that_was_stopped_ends_its_line() -> None:
    shown = Shown()
    assert shown.answer(Typed(shown.screen), step("delta", text="one"), step("cancelled")) == (
        "one\nstopped\n"
    )


def test_only_a_terminal_is_protected_from_what_a_model_says() -> None:
    hostile = step("result", text="\x1b[2J\u202ea\r\nb")
    shown = Shown()
    assert shown.answer(Typed(shown.screen), hostile) == "\\x1b[2J\\u202ea\nb\n"
    piped = Shown(terminal=False)
    assert piped.answer(show("text", piped.screen), hostile) == "\x1b[2J\u202ea\r\nb\n"
    for format_ in ("json", "stream-json"):
        program = Shown(terminal=True)
        line = program.answer(show(format_, program.screen), hostile)
        assert "\x1b" not in line
        assert "\x1b[2J\u202ea\r\nb" in json.loads(line).values()


def test_a_models_name_cannot_move_the_cursor_either() -> None:
    shown = Shown()
    named = step("accepted", model="\x1b[2J", provider="p\x1b")
    shown.answer(Typed(shown.screen, talking=True), named, RESULT)
    shown.screen.note(introduction(Answer(model="\x1b[2J", provider="p\x1b")))
    assert "\x1b" not in shown.out.getvalue()


@pytest.mark.parametrize(
    ("environ", "dim"),
    [
        ({}, True),
        ({"TERM": "dumb"}, False),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}, False),
        ({"TERM": "dumb", "CLICOLOR_FORCE": "1"}, True),
    ],
)
def test_colours_are_for_terminals_that_have_them(environ: dict[str, str], dim: bool) -> None:
    shown = Shown(environ={"PATH": "/bin", **environ})
    shown.screen.note("a note")
    assert ("\x1b[2m" in shown.out.getvalue()) is dim
    assert ("\x01" in shown.screen.prompt("you")) is dim


def test_the_embedded_model_is_introduced_as_the_small_one() -> None:
    others = "Others: --provider / --model, see ./ksi events show completion:async"
    assert introduction(Answer(model="smollm2-135m-instruct", provider="embedded")) == (
        f"smollm2-135m-instruct, the small built-in model, answers (no key needed). {others}"
    )
    assert introduction(Answer(model="haiku", provider="claude-cli")) == (
        f"haiku of claude-cli answers. {others}"
    )


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(usage={"completion_tokens": 1}, duration_ms=950), "1 token, 0.9 s"),
        (Answer(usage={"completion_tokens": 1234}), "1,234 tokens"),
        (Answer(), ""),
    ],
)
def test_what_an_answer_took_is_told_as_far_as_it_is_known(answer: Answer, text: str) -> None:
    assert effort(answer) == text


@pytest.mark.parametrize(
    ("reason", "code"), [("timed_out", 5), ("stalled", 5), ("rate_limited", 6), ("bug", 1)]
)
def test_every_failure_has_its_exit_code(reason: str, code: int) -> None:
    answer = Answer()
    answer.take(step("failed", failure={"reason": reason, "message": "m"}))
    assert code_of_answer(answer) == code


def test_an_answer_that_took_too_long_may_be_given_longer() -> None:
    answer = Answer()
    answer.take(step("failed", failure={"reason": "timed_out", "message": "m", "retryable": True}))
    assert lines_of_no_answer(answer)[-1] == "  try: ask again, or give it longer: --timeout 5m"


NOT_STARTED = NotStarted(
    Outcome(Exit.NEWER_SCHEMA, "Could not start: newer data\nLast lines:", {"reason": "newer data"})
)


@pytest.mark.parametrize(
    ("error", "lines", "code"),
    [
        (
            Unavailable("nothing listens", reason="daemon_not_running"),
            ["chat: KSI is not running.", "  Start it:  python3 daemon_control.py start"],
            3,
        ),
        (
            ResourceExhausted("queue full (100 of 100) for session 'a1'", reason="queue_full"),
            ["chat: queue full (100 of 100) for session 'a1'", "  why: queue full"],
            6,
        ),
        (NotFound("no \x1b[2J"), ["chat: no \\x1b[2J", "  NOT_FOUND"], 1),
        (NOT_STARTED, ["chat: Could not start: newer data", "Last lines:"], 7),
    ],
)
def test_every_error_is_told_and_has_its_exit_code(error: KSIError, lines: list[str], code: int) -> None:
    assert lines_of(error)[: len(lines)] == lines
    assert code_of(error) == code


FAILOVER = step(
    "failover", provider="mock", model="up", reason="rate_limited", message="429 Too Many Requests"
)


def test_who_answers_instead_is_said_in_a_line_and_speaks_under_its_own_name() -> None:
    shown = Shown()
    text = shown.answer(Typed(shown.screen, talking=True), ACCEPTED, FAILOVER, RESULT)
    notice = "mock/up is asked instead (rate limited: 429 Too Many Requests)"
    assert text.splitlines()[:3] == ["m ▸ ", notice, "up ▸ one two"]


def test_an_attempt_that_was_not_made_did_not_fail() -> None:
    left_alone = "m/a has failed too often and is left alone for 9.5 s"
    waits = step("retrying", attempt=0, reason="breaker_open", delay_s=9.5, message=left_alone)
    assert notice_of(waits) == f"waiting 9.5 s: {left_alone}"


def test_what_waits_for_a_budget_says_so_in_a_pipe_too() -> None:
    shown = Shown(terminal=False)
    paused = step("paused", reason="budget_exceeded", message="budget s1 is used up\n\x1b[2J")
    shown.answer(show("text", shown.screen), paused, RESULT)
    assert shown.err.getvalue().startswith("waiting: budget s1 is used up")
    assert "\x1b" not in shown.err.getvalue()


@pytest.mark.parametrize(
    ("cost", "said"),
    [(0.0, "$0.00"), (12.345, "$12.35"), (0.5, "$0.5000"), (0.0312, "$0.0312"), (0.00031, "$0.00031")],
)
def test_money_is_written_so_that_little_is_not_nothing(cost: float, said: str) -> None:
    answer = Answer("r1")
    answer.take(step("result", text="", usage={"completion_tokens": 2, "cost_usd": cost}, duration_ms=1000))
    assert effort(answer) == f"2 tokens, 1.0 s, {said}"


def test_what_was_given_before_and_who_answers_now_are_said() -> None:
    answer = Answer("r1")
    answer.take(step("result", text="", cached=True, provider="mock", model="up", provider_changed=True))
    assert effort(answer) == "given before, for nothing, now by mock/up"


def test_an_answer_too_long_for_a_step_is_what_the_deltas_said() -> None:
    answer = Answer("r1")
    for heard in (
        step("started", attempt=1),
        step("delta", text="void"),
        step("started", attempt=2),
        step("delta", text="one "),
        step("delta", text="two"),
        step("result", text=None),
    ):
        answer.take(heard)
    assert answer.text == "one two"
