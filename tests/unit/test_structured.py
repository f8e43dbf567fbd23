"""Answers that are to fit a JSON schema."""

import subprocess
import sys
from typing import Any

import pytest

from ksi_common.errors import InvalidArgument
from ksi_common.events.completion import ChatMessage, Usage
from ksi_completion.providers.interface import Answer
from ksi_completion.structured import Unfit, check_schema, fit, repaired

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer", "minimum": 0}},
    "required": ["name", "people"],
}


def answer(text: str, structured: Any = None) -> Answer:
    return Answer(text, "mock", "stop", Usage(), structured=structured)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Paris", "people": 2}',
        ' \n{"name": "Paris", "people": 2}\n',
        '```json\n{"name": "Paris", "people": 2}\n```',
        '```\n{"name": "Paris",\n "people": 2}\n```\n',
    ],
)
async def test_json_that_stands_alone_or_in_a_fence_is_read(text: str) -> None:
    assert await fit(CITY, answer(text)) == {"name": "Paris", "people": 2}


async def test_what_the_provider_made_of_it_goes_before_the_text() -> None:
    made = {"name": "Rome", "people": 3}
    assert await fit(CITY, answer("Here it is", made)) == made


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Paris", "it is no JSON"),
        ('Here: {"name": "Paris", "people": 2}', "it is no JSON"),
        ('{"name": "Paris"}', '"people" is a required property'),
        ('{"name": "Paris", "people": -1}', "people: -1 is less than the minimum of 0"),
    ],
)
async def test_what_does_not_fit_says_where(text: str, problem: str) -> None:
    with pytest.raises(Unfit) as caught:
        await fit(CITY, answer(text))
    assert problem in caught.value.problems[0]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"pattern": "("},
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "file:///etc/passwd"},
    ],
)
async def test_what_is_no_schema_or_lies_elsewhere_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await check_schema(schema)
    assert caught.value.details["reason"] == "bad_schema"


async def test_a_pattern_that_would_take_forever_elsewhere_does_not() -> None:
    with pytest.raises(Unfit):
        await fit({"pattern": "^(a+)+$"}, answer('"' + "a" * 50_000 + '!"'))


async def test_the_question_for_a_better_answer_says_what_is_wrong_with_it() -> None:
    asked = [ChatMessage(role="user", content="a city?")]
    again = repaired(asked, "Paris", "it is no JSON")
    assert [message.role for message in again] == ["user", "assistant", "user"]
    assert "it is no JSON" in again[-1].content
    assert [message.role for message in repaired(asked, None, "it is no JSON")] == ["user", "user"]


def test_the_validator_is_not_imported_before_there_is_a_schema() -> None:
    code = "import sys, ksi_completion, ksi_completion.structured; sys.exit('jsonschema_rs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
