"""What a completion tells, once, however often its stream begins anew."""

from typing import Any, cast, get_args

import pytest

from ksi_client.chat import steps
from ksi_client.chat.answer import Answer
from ksi_client.chat.steps import Course, Step
from ksi_common.events import completion


def step(kind: str, **fields: Any) -> Step:
    return cast("Step", {"type": kind, "request_id": "r1", "session_id": "s1", **fields})


def told(course: Course, *steps: Step) -> list[tuple[str, Any]]:
    new = [course.take(step) for step in steps]
    return [(step["type"], step.get("text") or step.get("attempt")) for step in new if step is not None]


ACCEPTED = step("accepted", provider="embedded", model="m", position=0)
BEGUN = [ACCEPTED, step("started", attempt=1), step("delta", text="one "), step("delta", text="two ")]


def test_steps_of_one_stream_are_all_told() -> None:
    assert told(Course(), *BEGUN, step("result", text="one two ")) == [
        ("accepted", None),
        ("started", 1),
        ("delta", "one "),
        ("delta", "two "),
        ("result", "one two "),
    ]


@pytest.mark.parametrize(
    ("said", "new"), [("one two ", []), ("one two three ", ["three "]), ("one", ["one"])]
)
def test_of_the_same_attempt_only_new_text_is_told(said: str, new: list[str]) -> None:
    course = Course()
    told(course, *BEGUN)
    course.begin_anew()
    again = told(course, ACCEPTED, step("started", attempt=1), step("delta", text=said))
    assert again == [("delta", text) for text in new]


def test_after_the_first_delta_of_a_new_stream_text_is_new_even_where_it_is_alike() -> None:
    course = Course()
    told(course, *BEGUN)
    course.begin_anew()
    told(course, ACCEPTED, step("started", attempt=1), step("delta", text="one two "))
    assert told(course, step("delta", text="one two ")) == [("delta", "one two ")]


def test_a_new_attempt_begins_from_nothing() -> None:
    course = Course()
    told(course, *BEGUN)
    course.begin_anew()
    again = told(course, ACCEPTED, step("started", attempt=2), step("delta", text="one two "))
    assert again == [("started", 2), ("delta", "one two ")]


def test_an_answer_learns_from_steps() -> None:
    answer = Answer("r1")
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    for heard in (*BEGUN, step("result", text="one two ", usage=usage, duration_ms=5)):
        answer.take(heard)
    assert answer.to_json() == {
        "session_id": "s1",
        "request_id": "r1",
        "result": "one two ",
        "provider": "embedded",
        "model": "m",
        "usage": usage,
        "duration_ms": 5,
        "is_error": False,
    }


def test_a_stopped_answer_is_an_error_without_text() -> None:
    answer = Answer("r1")
    answer.take(step("cancelled"))
    assert (answer.to_json()["result"], answer.to_json()["is_error"]) == (None, True)
    assert answer.to_json()["error"]["details"] == {"reason": "cancelled"}


def test_a_failed_answer_has_the_failure_in_the_shape_of_an_error() -> None:
    answer = Answer("r1")
    answer.take(step("failed", failure={"reason": "stalled", "message": "no output", "retryable": True}))
    assert answer.to_json()["error"] == {
        "message": "no output",
        "details": {"reason": "stalled"},
        "retryable": True,
    }


def test_what_chat_knows_of_steps_is_what_the_daemon_declares() -> None:
    """It has its own words for them, since the classes would cost it the import of pydantic."""
    assert get_args(steps.StepType) == get_args(completion.Step.model_fields["type"].annotation)
    for known in ("Step", "Usage", "Failure"):
        declared = getattr(completion, known).model_fields
        assert getattr(steps, known).__annotations__.keys() <= declared.keys()
