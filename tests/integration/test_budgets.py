"""Budgets: what does not fit is stopped, waits, and goes on where it was when there is more."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ksi_completion import budget_holds, budgets, reservations
from ksi_completion.budget_holds import BudgetHolds
from ksi_completion.next_tries import NextTries, Setback
from ksi_completion.rows import Row
from ksi_daemon.plugin import Unavailable
from ksi_daemon.testing import FakeClock, RunningDaemon, Wire, running_daemon

DAY_S = 86_400
FORTY = "x" * 160
"""A prompt of 40 tokens; the mock's answer to it has as many."""


def table(**settings: Any) -> dict[str, Any]:
    return {"plugins": {"completion": {"provider": "mock", **settings}}}


async def ask(wire: Wire, prompt: str, **asked: Any) -> dict[str, Any]:
    """Ask for a stream, and give its last step."""
    wire.send({"event": "completion:stream", "data": {"prompt": prompt, **asked}, "id": "ask"})
    return await until(wire, "result", "failed", "cancelled")


async def until(wire: Wire, *kinds: str) -> dict[str, Any]:
    """Read steps up to one of these kinds."""
    while True:
        frame = await wire.receive()
        if frame["type"] == "item" and frame["data"]["type"] in kinds:
            step: dict[str, Any] = frame["data"]
            return step


async def session(ksi: RunningDaemon, session_id: str) -> Mapping[str, Any]:
    return await ksi.call_raw("completion:session_status", {"session_id": session_id})


async def test_a_budget_of_100_tokens_stops_a_session_which_goes_on_where_it_was() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire, ksi.connect() as other:
        await ksi.call_raw("budget:set", {"subject": "s1", "tokens": 100})
        assert (await ask(wire, FORTY, session_id="s1"))["type"] == "result"  # 80 tokens
        # The session's next prompt goes with what was said before: 120 tokens, which do not fit.
        wire.send(
            {
                "event": "completion:stream",
                "data": {"prompt": FORTY, "session_id": "s1", "request_id": "r2"},
                "id": "ask",
            }
        )
        paused = await until(wire, "paused", "result", "failed")
        assert (paused["type"], paused["reason"]) == ("paused", "budget_exceeded")
        await ksi.call_raw("completion:async", {"prompt": FORTY, "session_id": "s1", "request_id": "r3"})
        stopped = await session(ksi, "s1")
        assert [pause["reason"] for pause in stopped["paused"]] == ["budget:session/s1/ever"]
        assert stopped["requests"] == ["r2", "r3"]
        (told,) = ksi.emitted("budget:exceeded")
        assert (told["name"], told["used_tokens"], told["phase"]) == ("session/s1/ever", 80, "before")
        assert told["request_id"] == "r2"
        # Nobody else is stopped.
        assert (await ask(other, FORTY, session_id="s2"))["type"] == "result"

        await ksi.call_raw("budget:set", {"subject": "s1", "tokens": 1000})
        last = await until(wire, "result", "failed")
        assert (last["type"], last["request_id"], last["attempt"]) == ("result", "r2", 1)
        listed = (await ksi.call_raw("budget:list", {"session_id": "s1"}))["budgets"]
        assert listed[0]["tokens"] == 1000


async def test_what_waits_for_a_budget_is_still_there_after_a_restart(tmp_path: Path) -> None:
    home = tmp_path / "var"
    async with running_daemon(home=home, settings=table(budgets=[{"tokens": 30}])) as ksi:
        await ksi.call_raw("completion:async", {"prompt": FORTY, "session_id": "s1", "request_id": "r1"})
        async with ksi.connect() as wire:
            wire.send(
                {
                    "event": "event:subscribe",
                    "data": {"patterns": ["budget:*"], "start": "beginning"},
                    "id": "u",
                }
            )
            while (await wire.receive())["type"] != "item":
                pass
    again = running_daemon(home=home, settings=table(budgets=[{"tokens": 300}]))
    async with again as ksi, ksi.connect() as wire:
        wire.send(
            {
                "event": "completion:stream",
                "data": {"prompt": FORTY, "session_id": "s1", "request_id": "r1"},
                "id": "ask",
            }
        )
        assert (await until(wire, "result", "failed"))["type"] == "result"


async def test_a_budget_that_was_set_holds_after_a_restart_and_removed_gives_back_that_of_the_file(
    tmp_path: Path,
) -> None:
    home, settings = tmp_path / "var", table(budgets=[{"subject": "s1", "tokens": 300}])
    async with running_daemon(home=home, settings=settings) as ksi:
        await ksi.call_raw("budget:set", {"subject": "s1", "tokens": 30})
    async with running_daemon(home=home, settings=settings) as ksi:
        (budget,) = (await ksi.call_raw("budget:list"))["budgets"]
        assert (budget["tokens"], budget["by"]) == (30, "request")
        await ksi.call_raw("budget:remove", {"subject": "s1"})
        (budget,) = (await ksi.call_raw("budget:list"))["budgets"]
        assert (budget["tokens"], budget["by"]) == (300, "settings")


async def test_an_answer_that_grows_out_of_a_budget_is_stopped_and_paid_for() -> None:
    mock = {"answer": "y" * 4000, "delta_characters": 40}
    async with running_daemon(settings=table(mock=mock)) as ksi, ksi.connect() as wire:
        await ksi.call_raw("budget:set", {"subject": "s1", "tokens": 100})
        wire.send({"event": "completion:stream", "data": {"prompt": FORTY, "session_id": "s1"}, "id": "ask"})
        assert (await until(wire, "paused", "result"))["type"] == "paused"
        (told,) = ksi.emitted("budget:exceeded")
        assert told["phase"] == "during"
        used = await ksi.call_raw("completion:token_usage", {"session_id": "s1"})
        assert used["total"]["failed_calls"] == 1
        assert 80 <= used["total"]["prompt_tokens"] <= 100
        await ksi.call_raw("budget:remove", {"subject": "s1"})
        last = await until(wire, "result", "failed")
        assert (last["type"], last["attempt"]) == ("result", 2)


async def test_money_stops_too_and_a_new_day_lets_go() -> None:
    clock = FakeClock()
    mock = {"usd_per_million_tokens": 1_000_000.0}
    budgets = [{"scope": "all", "per": "day", "cost_usd": 50}]
    running = running_daemon(settings=table(mock=mock, budgets=budgets), clock=clock)
    async with running as ksi, ksi.connect() as wire:
        assert (await ask(wire, FORTY))["type"] == "result"  # 80 dollars
        wire.send({"event": "completion:stream", "data": {"prompt": FORTY, "agent_id": "a"}, "id": "ask"})
        assert (await until(wire, "paused", "result"))["type"] == "paused"
        clock.advance(DAY_S)
        # The clock of the test does not wake who waits for midnight: another budget does.
        await ksi.call_raw("budget:set", {"scope": "agent", "subject": "nobody", "tokens": 1})
        assert (await until(wire, "result", "failed"))["type"] == "result"


async def test_a_day_that_begins_by_a_jump_of_the_clock_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that sleeps over midnight does not let its timers run meanwhile."""
    monkeypatch.setattr(budget_holds, "JUMP_S", 0.01)
    clock = FakeClock()
    limit = {"scope": "all", "per": "day", "tokens": 100}
    async with running_daemon(settings=table(budgets=[limit]), clock=clock) as ksi, ksi.connect() as wire:
        assert (await ask(wire, FORTY))["type"] == "result"
        wire.send({"event": "completion:stream", "data": {"prompt": FORTY}, "id": "ask"})
        assert (await until(wire, "paused", "result"))["type"] == "paused"
        clock.jump(DAY_S)
        assert (await until(wire, "result", "failed"))["type"] == "result"


async def test_sums_that_are_used_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of all was the first, and made room for a session's: what was reserved of it was forgotten."""
    monkeypatch.setattr(budgets, "REMEMBERED", 2)
    settings = table(budgets=[{"scope": "all", "tokens": 1000}, {"subject": "*", "tokens": 500}])
    async with running_daemon(settings=settings) as ksi, ksi.connect() as wire:
        for number in range(4):
            assert (await ask(wire, FORTY, session_id=f"s{number}"))["type"] == "result"
        known = ksi.daemon.services.get(budgets.Budgets)._spent
        assert reservations.Account() in known


async def test_an_agent_has_its_budget_over_all_its_sessions() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        await ksi.call_raw("budget:set", {"scope": "agent", "subject": "ada", "tokens": 100})
        assert (await ask(wire, FORTY, agent_id="ada", session_id="s1"))["type"] == "result"
        wire.send(
            {
                "event": "completion:stream",
                "data": {"prompt": FORTY, "agent_id": "ada", "session_id": "s2", "request_id": "r2"},
                "id": "ask",
            }
        )
        assert (await until(wire, "paused", "result"))["type"] == "paused"
        # It can be cancelled while it waits, and what is behind it goes on.
        cancelled = await ksi.call_raw("completion:cancel", {"request_id": "r2"})
        assert cancelled["status"] == "cancelled"
        await ksi.call_raw("completion:resume", {"session_id": "s2"})
        assert (await until(wire, "cancelled"))["request_id"] == "r2"


async def test_calls_beside_each_other_do_not_both_take_the_last_of_a_budget() -> None:
    mock = {"latency_s": 0.2, "answer": "y"}
    running = running_daemon(settings=table(mock=mock, budgets=[{"scope": "all", "tokens": 60}]))
    async with running as ksi, ksi.connect() as one, ksi.connect() as two:
        for wire in (one, two):
            wire.send({"event": "completion:stream", "data": {"prompt": FORTY}, "id": "ask"})
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(until(wire, "paused", "result")) for wire in (one, two)]
        assert sorted(end.result()["type"] for end in ends) == ["paused", "result"]


async def test_what_a_call_used_is_not_given_away_before_the_ledger_has_it() -> None:
    mock = {"answer": "y"}
    budgets = [{"scope": "all", "tokens": 60}]
    running = running_daemon(settings=table(mock=mock, concurrency=1, budgets=budgets))
    async with running as ksi, ksi.connect() as one, ksi.connect() as two:
        # The second begins as soon as the first has its answer, which is yet to be stored.
        for wire in (one, two):
            wire.send({"event": "completion:stream", "data": {"prompt": FORTY}, "id": "ask"})
        assert (await until(one, "paused", "result"))["type"] == "result"
        assert (await until(two, "paused", "result"))["type"] == "paused"
        listed = (await ksi.call_raw("budget:list", {}))["budgets"]
        assert (listed[0]["used_tokens"], listed[0]["reserved_tokens"]) == (41, 0)


async def test_a_budget_that_is_set_while_a_session_is_being_held_lets_it_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = running_daemon(settings=table(budgets=[{"scope": "all", "tokens": 30}]))
    async with running as ksi, ksi.connect() as wire:
        note = NextTries.note

        async def late(tries: NextTries, row: Row, setback: Setback) -> Row:
            if setback.over is not None and setback.over.tokens == 30:
                await ksi.call_raw("budget:set", {"scope": "all", "tokens": 300})
            return await note(tries, row, setback)

        monkeypatch.setattr(NextTries, "note", late)
        wire.send({"event": "completion:stream", "data": {"prompt": FORTY}, "id": "ask"})
        assert (await until(wire, "result"))["attempt"] == 1


async def test_a_disk_that_takes_no_release_ends_nothing_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "var"
    async with (
        running_daemon(home=home, settings=table(budgets=[{"tokens": 30}])) as ksi,
        ksi.connect() as wire,
    ):
        wire.send({"event": "completion:stream", "data": {"prompt": FORTY, "request_id": "r1"}, "id": "ask"})
        assert (await until(wire, "paused", "result"))["type"] == "paused"
    let_go, refused = BudgetHolds._let_go, 0

    async def refuse(holds: BudgetHolds) -> None:
        nonlocal refused
        refused += 1
        if refused == 1:
            raise Unavailable("cannot store: disk full", reason="store_unavailable")
        await let_go(holds)

    monkeypatch.setattr(BudgetHolds, "_let_go", refuse)
    async with (
        running_daemon(home=home, settings=table(budgets=[{"tokens": 300}])) as ksi,
        ksi.connect() as wire,
    ):
        wire.send({"event": "completion:stream", "data": {"prompt": FORTY, "request_id": "r1"}, "id": "ask"})
        assert (await until(wire, "result", "failed"))["type"] == "result"


async def test_budgets_are_listed_while_another_is_set() -> None:
    """The list walked what changed meanwhile, and was answered INTERNAL."""
    both = [{"scope": "all", "per": per, "tokens": 10} for per in ("ever", "day")]
    async with running_daemon(settings=table(budgets=both)) as ksi, ksi.connect() as wire:
        wire.send({"event": "budget:list", "data": {}, "id": "list"})
        wire.send({"event": "budget:set", "data": {"subject": "s1", "tokens": 100}, "id": "set"})
        replies = {frame["id"]: frame for frame in [await wire.receive(), await wire.receive()]}
        assert replies["set"]["type"] == "reply"
        assert replies["list"]["type"] == "reply", replies["list"]
