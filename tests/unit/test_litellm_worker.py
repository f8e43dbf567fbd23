"""The worker of litellm, with another library in the place of that: what it says of a call that fails."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from ksi_completion.providers.worker_reports import REPORT
from ksi_completion.workers.litellm import Desk, Order


class Refusing:
    """A service that takes the key away, and refuses with what it is to say."""

    def __init__(self, message: str, key: Path | None = None, headers: Any = None) -> None:
        self._message = message
        self._key = key
        self._headers = headers

    async def acompletion(self, **asked: Any) -> Any:
        if self._key is not None:
            self._key.unlink()
        error = ValueError(self._message.format(**asked))
        error.litellm_response_headers = self._headers  # type: ignore[attr-defined]  # as litellm's have
        raise error


class Answering:
    """A service that says these pieces, and counts these tokens of the prompt."""

    received_finish_reason = "stop"

    def __init__(self, *pieces: str, tokens: Any = 1) -> None:
        self._pieces = pieces
        self._usage = SimpleNamespace(prompt_tokens=tokens, completion_tokens=2)

    async def acompletion(self, **_: Any) -> Self:
        return self

    async def __aiter__(self) -> AsyncIterator[Any]:
        for piece in self._pieces:
            yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=piece))])

    async def aclose(self) -> None:
        """Nothing is open."""

    def stream_chunk_builder(self, _: Any, **__: Any) -> Any:
        choice = SimpleNamespace(message=SimpleNamespace(), finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage=self._usage, model="m")


async def said(litellm: Refusing, *, api_base: str | None = None, key: Path | None = None) -> dict[str, Any]:
    """Give what the worker reports of a call."""
    report: dict[str, Any] = (await all_said(litellm, ordered(api_base=api_base, key=key)))[-1]
    return report


async def all_said(litellm: Any, *orders: Order) -> list[dict[str, Any]]:
    """Give all that the worker reports of orders that come at once."""
    reports = io.BytesIO()
    async with asyncio.TaskGroup() as tasks:
        desk = Desk(litellm, reports, tasks)
        for order in orders:
            desk.take(order)
    for line in reports.getvalue().splitlines():
        REPORT.validate_json(line)  # else the daemon ends the worker, and its other answers with it
    return [json.loads(line) for line in reports.getvalue().splitlines()]


def ordered(*, api_base: str | None = None, key: Path | None = None) -> Order:
    """Ask for an answer."""
    options: dict[str, Any] = {
        "model": "m",
        "parameters": {},
        "timeout_s": 1.0,
        "api_base": api_base,
        "input_usd_per_million": None,
        "output_usd_per_million": None,
        "api_version": None,
        "api_key_env": None,
        "api_key_file": None if key is None else str(key),
    }
    order: dict[str, Any] = {"do": "complete", "id": "1", "messages": [], "system": None, "max_tokens": None}
    more: dict[str, Any] = {"tools": [], "response_schema": None, "options": options}
    return order | more


async def test_words_that_are_no_key_stay_as_they_are() -> None:
    for api_base in (None, "http://127.0.0.1"):
        report = await said(Refusing("none of them"), api_base=api_base)
        assert report["message"] == "ValueError: none of them"


async def test_a_key_whose_file_is_gone_when_the_call_fails_is_told_to_nobody(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-1\n")
    report = await said(Refusing("{api_key} is no key", key), key=key)
    assert (report["report"], report["message"]) == ("failed", "ValueError: (the key) is no key")


async def test_a_key_that_is_not_there_is_said(tmp_path: Path) -> None:
    report = await said(Refusing("never asked"), key=tmp_path / "key")
    assert (report["reason"], report["kind"]) == ("no_key", "auth")


async def test_an_order_that_is_cancelled_before_it_began_is_stopped() -> None:
    """Nothing was said of it: the daemon waited, and killed the worker with its other answers."""
    reports = await all_said(Refusing("never asked"), ordered(), {"do": "cancel", "id": "1"})
    assert reports == [{"report": "stopped", "id": "1"}]


async def test_a_key_is_not_told_where_a_long_message_is_cut_within_it(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-" + "1" * 60)
    report = await said(Refusing("x" * 960 + " {api_key} is no key"), key=key)
    assert "sk-" not in report["message"]


async def test_a_date_that_no_calendar_has_says_nothing_of_coming_back() -> None:
    """The worker ended by it, and its other answers with it."""
    headers = {"retry-after": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}
    report = await said(Refusing("too often", headers=headers))
    assert (report["message"], report["retry_after_s"]) == ("ValueError: too often", None)


async def test_half_a_surrogate_pair_of_a_service_is_a_question_mark() -> None:
    reports = await all_said(Answering("half \ud83d", " all \U0001f600"), ordered(api_base="http://one"))
    assert [report["text"] for report in reports] == ["half ?", " all \U0001f600", "half ? all \U0001f600"]


@pytest.mark.parametrize("tokens", [-1, 2**53, 1.5, None, "many"])
async def test_what_no_service_can_have_counted_is_not_counted(tokens: Any) -> None:
    """The report was none to the daemon, which ended the worker, and its other answers with it."""
    last = (await all_said(Answering("hi", tokens=tokens), ordered(api_base="http://one")))[-1]
    assert (last["text"], last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == ("hi", 0, 2)
