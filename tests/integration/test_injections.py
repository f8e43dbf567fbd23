"""Text that is put into what sessions are asked, and the breakers that keep that from going on forever."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ksi_common.events.completion import Async
from ksi_completion.injections import Injections
from ksi_daemon.testing import FakeClock, RunningDaemon, Wire, running_daemon
from tests.support.asking import ask, table


async def answer_of(wire: Wire, request_id: str) -> str:
    """Follow a completion that was asked for elsewhere to its answer."""
    wire.send(
        {
            "event": "event:subscribe",
            "data": {"patterns": ["completion:result"], "start": "beginning"},
            "id": "u",
        }
    )
    while True:
        frame = await wire.receive()
        if frame["type"] == "item" and frame["data"]["data"]["request_id"] == request_id:
            break
    status = await wire.call(
        "completion:status", {"request_id": request_id, "include_response": True}, id="status"
    )
    text: str = status["data"]["completion"]["response"]
    return text


async def inject(ksi: RunningDaemon, content: str, **how: Any) -> dict[str, Any]:
    return await ksi.call_raw("injection:inject", {"session_id": "s1", "content": content, **how})


async def test_what_is_injected_joins_the_next_prompt_of_its_session_once() -> None:
    async with running_daemon(settings=table()) as ksi:
        await inject(ksi, "second")
        await inject(ksi, "first", priority="high")
        await inject(ksi, "last", position="after_prompt", style="system_reminder", metadata={"a": 1})
        listed = (await ksi.call_raw("injection:list", {"session_id": "s1"}))["injections"]
        assert [one["content"] for one in listed] == ["first", "second", "last"]
        assert listed[2]["metadata"] == {"a": 1}
        assert (await ask(ksi, "other", session_id="s2"))["text"] == "other"
        step = await ask(ksi, "prompt", session_id="s1", request_id="r1")
        reminder = "<system-reminder>\nlast\n</system-reminder>"
        assert step["text"] == f"first\n\nsecond\n\nprompt\n\n{reminder}"
        assert (await ask(ksi, "again", session_id="s1"))["text"] == "again"
        assert [told["request_id"] for told in ksi.emitted("injection:taken")] == ["r1"] * 3
        read = await ksi.call_raw("conversation:get", {"session_id": "s1"})
        assert read["messages"][0]["content"] == step["text"]
        # The same request asked again is the same one, though nothing is injected any more.
        assert (await ask(ksi, "prompt", session_id="s1", request_id="r1"))["text"] == step["text"]


async def test_what_is_injected_joins_a_prompt_that_follows_at_once() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        for number in range(20):
            data = {"session_id": f"s{number}", "content": "first"}
            prompt = {"session_id": f"s{number}", "prompt": "then"}
            wire.send({"event": "injection:inject", "data": data, "id": f"i{number}"})
            wire.send({"event": "completion:async", "data": prompt, "id": f"c{number}"})
        for _ in range(40):
            assert (await wire.receive())["type"] == "reply"
        assert (await ksi.call_raw("injection:list"))["count"] == 0


async def test_what_is_injected_while_prompts_take_what_was_before_joins_the_one_that_follows() -> None:
    """The commit of a prompt was told while the next injection, and its prompt, were in the next one."""
    async with (
        running_daemon(settings=table(session_queue=1000, injection={"max_per_minute": 1000})) as ksi,
        ksi.connect() as wire,
    ):
        for number in range(300):
            data = {"session_id": "s", "content": f"first {number}"}
            prompt = {"session_id": "s", "prompt": f"then {number}"}
            wire.send({"event": "injection:inject", "data": data, "id": f"i{number}"})
            wire.send({"event": "completion:async", "data": prompt, "id": f"c{number}"})
            await asyncio.sleep(0)
        accepted = await ksi.wait_emitted("completion:accepted", 300)
    said = [one["messages"][-1]["content"] for one in accepted]
    assert said == [f"first {number}\n\nthen {number}" for number in range(300)]


async def test_what_waits_is_there_after_a_restart_until_its_time_is_over(tmp_path: Path) -> None:
    clock, home = FakeClock(), tmp_path / "var"
    async with running_daemon(home=home, settings=table(), clock=clock) as ksi:
        await inject(ksi, "kept", ttl_s=100)
        await inject(ksi, "over", ttl_s=10)
    clock.advance(50)
    async with running_daemon(home=home, settings=table(), clock=clock) as ksi:
        assert (await ksi.call_raw("injection:status"))["queued_count"] == 1
        assert (await ask(ksi, "prompt", session_id="s1"))["text"] == "kept\n\nprompt"


async def test_a_direct_one_is_a_prompt_of_its_own() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        injected = await inject(ksi, "at once", mode="direct", agent_id="ada")
        assert await answer_of(wire, injected["request_id"]) == "at once"
        assert (await ksi.call_raw("injection:list"))["count"] == 0


async def test_several_sessions_are_asked_the_same() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        asked = {"content": "where are you?", "target_sessions": ["s1", "s2"]}
        batched = await ksi.call_raw("injection:execute", asked)
        assert [one["session_id"] for one in batched["injected"]] == ["s1", "s2"]
        text = await answer_of(wire, batched["injected"][1]["request_id"])
        assert text == "<system-reminder>\nwhere are you?\n</system-reminder>"


async def test_a_direct_one_that_nobody_can_answer_is_refused_and_gone() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        asked = {"session_id": "s1", "content": "hi", "mode": "direct", "provider": "nobody"}
        refused = await wire.call("injection:inject", asked)
        assert refused["error"]["details"]["reason"] == "unknown_provider"
        batched = await ksi.call_raw(
            "injection:batch", {"injections": [asked, {**asked, "provider": "mock"}]}
        )
        assert [one["reason"] for one in batched["refused"]] == ["unknown_provider"]
        assert len(batched["injected"]) == 1


async def test_answers_that_are_injected_into_each_other_end_at_a_depth() -> None:
    async with running_daemon(settings=table(injection={"max_depth": 3})) as ksi, ksi.connect() as wire:
        await ask(ksi, "ping", session_id="s0", request_id="r0")
        request_id, depths = "r0", []
        for _ in range(3):
            asked = {"request_id": request_id, "target_sessions": ["s1"], "mode": "direct", "guidance": "on:"}
            batched = await ksi.call_raw("injection:process_result", asked)
            depths.append(batched["injected"][0]["depth"])
            request_id = batched["injected"][0]["request_id"]
            assert (await answer_of(wire, request_id)).startswith("on:\n\n")
        assert depths == [1, 2, 3]
        asked = {"request_id": request_id, "target_sessions": ["s1"]}
        batched = await ksi.call_raw("injection:process_result", asked)
        assert [one["reason"] for one in batched["refused"]] == ["injection_depth"]
        assert (await ksi.call_raw("injection:status"))["blocked_count"] == 1


async def test_one_that_is_refused_after_others_were_forgotten_is_counted_once() -> None:
    clock = FakeClock()
    settings, too_much = table(injection={"max_tokens": 10}), {"session_id": "s1", "content": "x" * 100}
    async with running_daemon(settings=settings, clock=clock) as ksi, ksi.connect() as wire:
        await inject(ksi, "x", ttl_s=10)
        clock.advance(11)
        # Its unit changes something, fails, and is run again.
        assert (await wire.call("injection:inject", too_much))["type"] == "error"
        assert (await ksi.call_raw("injection:status"))["blocked_count"] == 1
        await ksi.call_raw("injection:batch", {"injections": [too_much, too_much]})
        assert (await ksi.call_raw("injection:status"))["blocked_count"] == 3


@pytest.mark.parametrize(
    ("limit", "reason", "wait_s"),
    [({"max_tokens": 10}, "injection_tokens", 3601), ({"max_per_minute": 1}, "injection_rate", 61)],
)
async def test_too_much_and_too_often_are_refused_until_time_has_passed(
    limit: dict[str, int], reason: str, wait_s: float
) -> None:
    clock = FakeClock()
    async with running_daemon(settings=table(injection=limit), clock=clock) as ksi, ksi.connect() as wire:
        await inject(ksi, "x" * 24)
        asked = {"session_id": "s1", "content": "x" * 24}
        refused = (await wire.call("injection:inject", asked))["error"]
        assert (refused["code"], refused["details"]["reason"]) == ("RESOURCE_EXHAUSTED", reason)
        assert refused["details"]["retry_after_s"] > 0
        await ksi.call_raw("injection:inject", {"session_id": "s2", "content": "x"})
        clock.advance(wait_s)
        await inject(ksi, "x" * 24)


async def test_what_waits_is_dropped_by_wish() -> None:
    async with running_daemon(settings=table()) as ksi:
        await inject(ksi, "a")
        await ksi.call_raw("injection:inject", {"session_id": "s2", "content": "b"})
        assert (await ksi.call_raw("injection:clear", {"session_id": "s1"}))["cleared"] == 1
        assert (await ask(ksi, "prompt", session_id="s1"))["text"] == "prompt"
        assert (await ksi.call_raw("injection:clear"))["cleared"] == 1


async def test_an_answer_that_there_is_not_cannot_be_injected() -> None:
    async with running_daemon(settings=table(mock={"failure_rate": 1, "failure_kind": "invalid"})) as ksi:
        await ask(ksi, "fails", request_id="r1")
        async with ksi.connect() as wire:
            asked = {"request_id": "r1", "target_sessions": ["s1"]}
            refused = await wire.call("injection:process_result", asked)
        assert refused["error"]["details"]["reason"] == "no_answer"


async def test_what_one_prompt_has_no_room_for_joins_the_next() -> None:
    async with running_daemon(settings=table()) as ksi:
        # Six bytes each in JSON: three of them are more than an event may have.
        texts = [sign * 64_000 for sign in "\x01\x02\x03"]
        for text in texts:
            await inject(ksi, text)
        for text in texts:
            assert (await ask(ksi, "prompt", session_id="s1"))["text"] == f"{text}\n\nprompt"
        assert (await ask(ksi, "last", session_id="s1"))["text"] == "last"


async def test_a_direct_one_that_is_cleared_before_it_is_sent_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        request_of = Injections.request_of

        async def late(injections: Injections, injection_id: str) -> Async:
            await ksi.call_raw("injection:clear", {})
            return await request_of(injections, injection_id)

        monkeypatch.setattr(Injections, "request_of", late)
        data = {"session_id": "s1", "content": "x", "mode": "direct"}
        error = (await wire.call("injection:inject", data, id="i"))["error"]
        assert (error["code"], error["details"]["reason"]) == ("FAILED_PRECONDITION", "cleared")


async def test_an_answer_that_is_too_long_to_inject_is_said() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        await ask(ksi, "x" * 70_000, request_id="r1")
        data = {"request_id": "r1", "target_sessions": ["s2"]}
        error = (await wire.call("injection:process_result", data, id="p"))["error"]
        assert (error["code"], error["details"]["reason"]) == ("FAILED_PRECONDITION", "answer_too_long")


async def test_one_that_met_a_bug_when_it_was_to_be_sent_keeps_no_daemon_from_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(*_: object) -> None:
        raise ZeroDivisionError

    settings, home = {**table(), "strict": False}, tmp_path / "var"
    monkeypatch.setattr(Injections, "request_of", crash)
    async with running_daemon(home=home, settings=settings) as ksi:
        error = await ksi.call_error(
            "injection:inject", {"session_id": "s1", "content": "a", "mode": "direct"}
        )
        assert error.code == "INTERNAL"
    async with running_daemon(home=home, settings=settings) as ksi:
        assert (await ask(ksi, "still here", session_id="s2"))["text"] == "still here"
    monkeypatch.undo()
    async with running_daemon(home=home, settings=settings) as ksi, ksi.connect() as wire:
        (waiting,) = await ksi.wait_emitted("completion:accepted")
        assert await answer_of(wire, waiting["request_id"]) == "a"
