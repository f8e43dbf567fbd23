"""Answers that fit a schema, with one try to mend them; and answers that are given again."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.database import Database
from ksi_daemon.plugin import Transaction, Unavailable
from ksi_daemon.testing import FakeClock, RunningDaemon, running_daemon
from tests.support.asking import table

CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


async def ask(ksi: RunningDaemon, prompt: str, **asked: Any) -> list[dict[str, Any]]:
    """Ask for a stream, and give its steps."""
    steps = []
    async with ksi.connect() as wire:
        wire.send({"event": "completion:stream", "data": {"prompt": prompt, **asked}, "id": "ask"})
        while (frame := await wire.receive())["type"] == "item":
            steps.append(frame["data"])
    assert frame["type"] == "end", frame
    return steps


async def test_an_answer_that_fits_comes_as_data() -> None:
    async with running_daemon(settings=table(mock={"answer": '```json\n{"name": "Paris"}\n```'})) as ksi:
        last = (await ask(ksi, "a city?", response_schema=CITY))[-1]
        assert last["structured"] == {"name": "Paris"}
        (told,) = ksi.emitted("completion:result")
        assert told["structured"] == {"name": "Paris"}


async def test_an_answer_that_does_not_fit_is_asked_for_once_more() -> None:
    mock = {"answers": {"a city?": "Paris!"}, "answer": '{"name": "Paris"}'}
    async with running_daemon(settings=table(mock=mock)) as ksi:
        steps = await ask(ksi, "a city?", response_schema=CITY)
        kinds = [step["type"] for step in steps]
        assert kinds == ["accepted", "started", "delta", "retrying", "started", "delta", "result"]
        assert (steps[3]["reason"], steps[-1]["structured"]) == ("not_structured", {"name": "Paris"})
        # Both calls are paid for.
        total = (await ksi.call_raw("completion:token_usage"))["total"]
        assert (total["calls"], total["failed_calls"]) == (2, 1)


async def test_what_does_not_fit_twice_fails_and_says_why() -> None:
    async with running_daemon(settings=table(mock={"answer": '{"city": "Paris"}'})) as ksi:
        steps = await ask(ksi, "a city?", response_schema=CITY)
        assert [step["type"] for step in steps].count("started") == 2
        assert steps[-1]["failure"]["reason"] == "not_structured"
        assert '"name" is a required property' in steps[-1]["failure"]["message"]


async def test_what_is_no_schema_is_refused_at_once() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        refused = await wire.call("completion:async", {"prompt": "a", "response_schema": {"type": "nothing"}})
        assert refused["error"]["details"]["reason"] == "bad_schema"


async def test_the_same_request_gets_the_same_answer_for_nothing() -> None:
    clock = FakeClock()
    async with running_daemon(settings=table(cache={"ttl_s": 60}), clock=clock) as ksi:
        first = (await ask(ksi, "hello"))[-1]
        again = (await ask(ksi, "hello"))[-1]
        assert (first["cached"], again["cached"]) == (False, True)
        assert again["text"] == first["text"]
        assert again["usage"]["prompt_tokens"] == 0
        assert (await ask(ksi, "hello", max_tokens=5))[-1]["cached"] is False
        assert (await ask(ksi, "hello", system="be brief"))[-1]["cached"] is False
        assert (await ksi.call_raw("completion:token_usage"))["total"]["calls"] == 3
        clock.advance(61)
        assert (await ask(ksi, "hello"))[-1]["cached"] is False


async def test_without_the_setting_every_request_is_answered_anew() -> None:
    async with running_daemon(settings=table()) as ksi:
        for _ in range(2):
            assert (await ask(ksi, "hello"))[-1]["cached"] is False
        assert (await ksi.call_raw("completion:token_usage"))["total"]["calls"] == 2


async def test_the_oldest_answers_make_room(tmp_path: Path) -> None:
    clock = FakeClock()
    home = tmp_path / "var"
    settings = table(cache={"max_answers": 2})
    for number in range(3):  # the first answer that a daemon keeps is when it looks at what is too much
        async with running_daemon(home=home, settings=settings, clock=clock) as ksi:
            clock.advance(1)
            await ask(ksi, f"hello {number}")
    async with running_daemon(home=home, settings=settings, clock=clock) as ksi:
        assert [(await ask(ksi, f"hello {number}"))[-1]["cached"] for number in (2, 1, 0)] == [
            True,
            True,
            False,
        ]


async def test_an_answer_that_cannot_be_kept_is_given_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Database.write

    def refuse(database: Database, unit: Callable[[Transaction], Any]) -> "asyncio.Future[Any]":
        if getattr(unit, "__qualname__", "").startswith("ResponseCache."):
            refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            refused.set_exception(Unavailable("cannot store: disk full", reason="store_unavailable"))
            return refused
        return write(database, unit)

    async with running_daemon(settings=table(cache={})) as ksi:
        monkeypatch.setattr(Database, "write", refuse)
        first = (await ask(ksi, "hello"))[-1]
        assert (first["type"], first["text"]) == ("result", "hello")
        monkeypatch.undo()
        assert [(await ask(ksi, "hello"))[-1]["cached"] for _ in range(2)] == [False, True]


async def test_a_kept_answer_that_is_damaged_is_asked_for_anew() -> None:
    async with running_daemon(settings=table(cache={})) as ksi:
        await ask(ksi, "hello")
        await ksi.daemon.database.write_apart(
            lambda tx: tx.execute("UPDATE completion_cache SET answer = x'7b'").rowcount
        )
        assert [(await ask(ksi, "hello"))[-1]["cached"] for _ in range(2)] == [False, True]


@pytest.mark.parametrize("odd", ["12345678901234567", "[" * 70 + "]" * 70])
async def test_what_the_log_could_not_be_read_with_fits_no_schema(odd: str) -> None:
    """Whoever asked for events was refused wherever such an answer was among them."""
    mock = {"answers": {"a city?": f'{{"name": "Paris", "odd": {odd}}}'}, "answer": '{"name": "Paris"}'}
    async with running_daemon(settings=table(mock=mock)) as ksi:
        steps = await ask(ksi, "a city?", response_schema=CITY)
        assert steps[-1]["structured"] == {"name": "Paris"}
        assert "retrying" in [step["type"] for step in steps]
        found = await ksi.call_raw("event:query", {"patterns": ["completion:*"]})
        assert [event["event"] for event in found["events"]].count("completion:result") == 1
