"""What was used is in the ledger, once for each call, and added up as it is asked for."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from ksi_completion.ending import Ending
from ksi_completion.running import Attempt
from ksi_daemon.testing import FakeClock, RunningDaemon, running_daemon
from tests.support.asking import ask, table

DAY_S = 86_400


async def usage(ksi: RunningDaemon, **asked: Any) -> Mapping[str, Any]:
    return await ksi.call_raw("completion:token_usage", asked)


async def test_sums_of_money_have_no_digits_of_their_own() -> None:
    mock = {"usd_per_million_tokens": 100_000.0}
    budgets = [{"scope": "all", "cost_usd": 5}]
    async with running_daemon(settings=table(mock=mock, budgets=budgets)) as ksi:
        for prompt in ("x" * 4, "x" * 8):  # 0.2 and 0.4 dollars: floats add up to 0.6000000000000001
            await ask(ksi, prompt)
        assert (await usage(ksi))["total"]["cost_usd"] == 0.6
        (budget,) = (await ksi.call_raw("budget:list"))["budgets"]
        assert budget["used_cost_usd"] == 0.6


async def test_calls_are_added_up_by_whatever_tells_them_apart() -> None:
    clock = FakeClock()
    mock = {"models": ["a", "b"], "usd_per_million_tokens": 1_000_000.0}
    async with running_daemon(settings=table(mock=mock), clock=clock) as ksi:
        await ask(ksi, "x" * 40, session_id="s1", agent_id="ada")  # 10 tokens, and 10 for the answer
        await ask(ksi, "x" * 20, session_id="s2", agent_id="bob", model="b")
        clock.advance(DAY_S)
        await ask(ksi, "x" * 4, session_id="s3", model="b")
        total = (await usage(ksi))["total"]
        assert (total["calls"], total["failed_calls"], total["unpriced_calls"]) == (3, 0, 0)
        assert (total["prompt_tokens"], total["completion_tokens"], total["cost_usd"]) == (16, 16, 32.0)
        by = {
            name: {group["key"]: group["prompt_tokens"] for group in (await usage(ksi, by=name))["groups"]}
            for name in ("session", "agent", "provider", "model", "day")
        }
        assert by == {
            "session": {"s1": 10, "s2": 5, "s3": 1},
            "agent": {"ada": 10, "bob": 5, "": 1},
            "provider": {"mock": 16},
            "model": {"mock/a": 10, "mock/b": 6},
            "day": {"2023-11-14": 15, "2023-11-15": 1},
        }
        assert (await usage(ksi, until="2023-11-15T00:00:00Z"))["total"]["prompt_tokens"] == 15
        assert (await usage(ksi, since="2023-11-15T00:00:00Z"))["total"]["prompt_tokens"] == 1
        assert (await usage(ksi, agent_id="bob"))["total"]["prompt_tokens"] == 5
        assert [group["key"] for group in (await usage(ksi, by="session", limit=1))["groups"]] == ["s1"]


async def test_nobody_knows_what_is_not_priced() -> None:
    async with running_daemon(settings=table()) as ksi:
        await ask(ksi, "hello")
        total = (await usage(ksi))["total"]
        assert (total["cost_usd"], total["unpriced_calls"]) == (None, 1)


async def test_a_budget_is_set_described_and_removed() -> None:
    budgets = [{"scope": "all", "per": "day", "cost_usd": 5}, {"tokens": 1000}]
    async with running_daemon(settings=table(budgets=budgets)) as ksi, ksi.connect() as wire:
        await ask(ksi, "x" * 40, session_id="s1")
        listed = (await ksi.call_raw("budget:list"))["budgets"]
        assert [(budget["name"], budget["by"]) for budget in listed] == [
            ("all/*/day", "settings"),
            ("session/*/ever", "settings"),
        ]
        mine = (await ksi.call_raw("budget:list", {"session_id": "s1"}))["budgets"]
        assert [(budget["name"], budget["used_tokens"]) for budget in mine] == [
            ("all/*/day", 20),
            ("session/*/ever", 20),
        ]
        key = {"scope": "session", "subject": "s1"}
        own = await ksi.call_raw("budget:set", {**key, "tokens": 20})
        assert (own["used_tokens"], own["is_exceeded"], own["by"]) == (20, True, "request")
        mine = (await ksi.call_raw("budget:list", {"session_id": "s1"}))["budgets"]
        assert [budget["name"] for budget in mine] == ["all/*/day", "session/s1/ever"]
        assert (await ksi.call_raw("budget:get", key))["tokens"] == 20
        assert (await ksi.call_raw("budget:remove", key))["removed"]
        assert not (await ksi.call_raw("budget:remove", key))["removed"]
        gone = await wire.call("budget:get", key)
        assert gone["error"]["details"]["reason"] == "unknown_budget"
        refused = await wire.call("budget:remove", {"scope": "all", "per": "day"})
        assert refused["error"]["details"]["reason"] == "set_in_file"
        assert [told["tokens"] for told in ksi.emitted("budget:changed")] == [20]


async def test_a_budget_of_the_settings_is_overridden_and_comes_back() -> None:
    async with running_daemon(settings=table(budgets=[{"tokens": 1000}])) as ksi:
        await ksi.call_raw("budget:set", {"tokens": 5})
        assert (await ksi.call_raw("budget:get"))["tokens"] == 5
        await ksi.call_raw("budget:remove")
        assert (await ksi.call_raw("budget:get"))["tokens"] == 1000


async def test_a_budget_without_a_limit_or_of_somebody_in_all_is_refused() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        for data, said in (
            ({}, "give tokens, or cost_usd, or both"),
            ({"scope": "all", "subject": "s1", "tokens": 1}, "a budget of all has no subject"),
        ):
            refused = await wire.call("budget:set", data)
            assert refused["error"]["code"] == "INVALID_ARGUMENT"
            assert said in str(refused["error"])


async def test_a_failure_whose_line_is_adopted_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the line and the commit took the cost of the last attempt."""
    mock = {"failure_rate": 1, "failures_cost": True}
    written, gate, commit = asyncio.Event(), asyncio.Event(), Ending.commit

    async def commit_late(self: Ending, *args: Any) -> Any:
        written.set()
        await gate.wait()
        return await commit(self, *args)

    monkeypatch.setattr(Ending, "commit", commit_late)
    async with running_daemon(settings=table(mock=mock, attempts=2, retry_delay_s=0.01)) as ksi:
        await ksi.call_raw("completion:async", {"prompt": "x" * 40, "request_id": "r1"})
        await written.wait()
        async with ksi.crash("before_commit", "completion:async"):
            gate.set()
        await ksi.wait_emitted("completion:failed")
        total = (await usage(ksi))["total"]
        assert (total["calls"], total["failed_calls"], total["prompt_tokens"]) == (2, 2, 20)
        found = (await ksi.call_raw("completion:status", {"request_id": "r1"}))["completion"]
        assert found["attempts"] == 2


async def test_a_failure_that_a_cancel_overtakes_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    mock = {"failure_rate": 1, "failures_cost": True}
    stop = Attempt._stop

    async def cancelled_by_now(self: Attempt) -> Any:
        self.cancel()
        return await stop(self)

    monkeypatch.setattr(Attempt, "_stop", cancelled_by_now)
    async with running_daemon(settings=table(mock=mock)) as ksi:
        await ksi.call_raw("completion:async", {"prompt": "x" * 40})
        await ksi.wait_emitted("completion:cancelled")
        total = (await usage(ksi))["total"]
    assert (total["calls"], total["failed_calls"], total["prompt_tokens"]) == (1, 1, 10)
