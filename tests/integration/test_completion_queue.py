"""The queue of completions over the socket: order, pauses, back-off, limits, what is set aside."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_completion.ending import Ending
from ksi_completion.open_completions import OpenCompletions
from ksi_completion.outcomes import Outcome
from ksi_completion.rows import Row
from ksi_daemon.database import Database
from ksi_daemon.testing import PATIENCE_S, FakeClock, RunningDaemon, Wire, running_daemon
from tests.support.asking import until

ODD_WORKER = [sys.executable, str(Path(__file__).parents[1] / "support" / "odd_worker.py")]

Frame = dict[str, Any]


@asynccontextmanager
async def daemon(
    home: Path | None = None, *, clock: FakeClock | None = None, **settings: Any
) -> AsyncIterator[RunningDaemon]:
    """Run a daemon whose model is a script that does what the prompt says."""
    table = {"plugins": {"completion": {"worker": ODD_WORKER, **settings}}}
    async with running_daemon(home=home, settings=table, clock=clock) as ksi:
        yield ksi


async def ask(wire: Wire, prompt: str, name: str, session: str = "s", **fields: Any) -> Frame:
    """Have a completion accepted."""
    data = {"prompt": prompt, "request_id": name, "session_id": session, **fields}
    answer = await wire.call("completion:async", data)
    assert answer["type"] == "reply", answer
    accepted: Frame = answer["data"]
    return accepted


async def status(ksi: RunningDaemon, name: str | None = None, **fields: Any) -> Frame:
    found: Frame = await ksi.call_raw("completion:status", {"request_id": name, **fields} if name else {})
    return found["completion"] if name else found


async def refused(wire: Wire, event: str, **data: Any) -> Frame:
    answer = await wire.call(event, data)
    assert answer["type"] == "error", answer
    error: Frame = answer["error"]
    return error


# Order


async def test_the_most_urgent_session_goes_first_and_each_keeps_its_own_order() -> None:
    async with daemon(concurrency=1) as ksi, ksi.connect() as wire:
        await wire.call("completion:pause")
        for name, session, priority in (
            ("low", "a", "low"),
            ("normal", "b", "normal"),
            ("first", "c", "background"),
            ("urgent", "c", "critical"),
            ("high", "d", "high"),
        ):
            await ask(wire, "echo: x", name, session, priority=priority)
        await wire.call("completion:resume")
        await until(ksi, "completion:result", 5)
        started = [event["request_id"] for event in ksi.emitted("completion:started")]
        # What is urgent has its own session's turn to wait for, while others begin.
        assert [name for name in started if name != "urgent"] == ["first", "high", "normal", "low"]


async def test_the_acknowledgement_tells_how_many_are_before_it() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await wire.call("completion:pause")
        places = [(await ask(wire, "echo: x", f"r{number}"))["position"] for number in range(3)]
        assert places == [0, 1, 2]
        assert [(await status(ksi, f"r{number}"))["position"] for number in range(3)] == [0, 1, 2]


# Pauses


@pytest.mark.parametrize("scope", [{}, {"session_id": "s"}, {"provider": "embedded"}])
async def test_what_is_paused_begins_after_a_restart_when_it_is_resumed(tmp_path: Path, scope: Frame) -> None:
    async with daemon(tmp_path / "var") as ksi, ksi.connect() as wire:
        reply = (await wire.call("completion:pause", scope))["data"]
        assert (reply["changed"], len(reply["paused"])) == (True, 1)
        assert (await wire.call("completion:pause", scope))["data"]["changed"] is False
        await ask(wire, "echo: held", "r1")
        if "session_id" in scope:
            await ask(wire, "echo: beside", "r2", "t")
            assert [event["request_id"] for event in await until(ksi, "completion:result")] == ["r2"]
    async with daemon(tmp_path / "var") as ksi, ksi.connect() as wire:
        assert (await status(ksi))["queued_count"] == 1
        assert (await ksi.call_raw("completion:session_status", {"session_id": "s"}))["active"] is False
        assert (await status(ksi, "r1"))["process_state"] == "pending"
        reply = (await wire.call("completion:resume", scope))["data"]
        assert (reply["changed"], reply["paused"]) == (True, [])
        await until(ksi, "completion:result", 2 if "session_id" in scope else 1)
        assert (await status(ksi, "r1"))["state"] == "completed"


@pytest.mark.parametrize(
    ("scope", "what"),
    [({}, "the queue"), ({"session_id": "s"}, "session s"), ({"provider": "embedded"}, "provider embedded")],
)
async def test_who_follows_what_is_paused_hears_why_it_does_not_begin(
    tmp_path: Path, scope: Frame, what: str
) -> None:
    async with daemon() as ksi, ksi.connect() as wire, ksi.connect() as early, ksi.connect() as late:
        await ask(wire, f"mode:gate {tmp_path / 'gate'}", "r1")
        await until(ksi, "completion:started")
        data = {"prompt": "echo: x", "request_id": "r2", "session_id": "s"}
        early.send({"event": "completion:stream", "data": data, "id": "f"})
        assert (await early.receive())["data"]["type"] == "accepted"
        await ksi.call_raw("completion:pause", scope)
        late.send({"event": "completion:stream", "data": data, "id": "f"})
        assert (await late.receive())["data"]["type"] == "accepted"
        for follower in (early, late):
            step = (await follower.receive())["data"]
            said = f"{what} is paused; completion:resume lets it go on"
            assert (step["type"], step["reason"], step["message"]) == ("paused", "paused", said)
        (tmp_path / "gate").touch()
        await ksi.call_raw("completion:resume", scope)
        for follower in (early, late):
            assert (await follower.receive())["data"]["type"] == "started"


async def test_a_pause_of_a_session_and_a_provider_at_once_is_refused() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        error = await refused(wire, "completion:pause", session_id="s", provider="embedded")
        assert "not both" in error["message"]


async def test_a_provider_that_is_none_is_not_paused() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        error = await refused(wire, "completion:pause", provider="embeded")
        assert (error["code"], error["details"]["reason"]) == ("NOT_FOUND", "unknown_provider")
        assert (await status(ksi))["paused"] == []
        # One that was paused, and is gone since, can be let go.
        reply = await wire.call("completion:resume", {"provider": "embeded"})
        assert reply["data"]["changed"] is False


# Clearing


async def test_clearing_a_session_ends_what_is_queued_and_leaves_what_runs() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        for name in ("r0", "r1", "r2"):
            await ask(wire, "mode:hang", name)
        await ask(wire, "mode:hang", "other", "t")
        await until(ksi, "completion:started", 2)
        reply = (await wire.call("completion:clear_session", {"session_id": "s"}))["data"]
        assert reply == {"session_id": "s", "cancelled": ["r1", "r2"], "running": "r0"}
        assert {event["request_id"] for event in ksi.emitted("completion:cancelled")} == {"r1", "r2"}
        state = await ksi.call_raw("completion:session_status", {"session_id": "s"})
        assert (state["running"], state["queued"], state["requests"]) == ("r0", 0, [])
        error = await refused(wire, "completion:clear_session", session_id="none")
        assert error["code"] == "NOT_FOUND"


# Back-off


async def test_what_waits_for_its_next_try_holds_no_slot_and_keeps_its_session_s_turn() -> None:
    async with daemon(concurrency=1, attempts=2) as ksi, ksi.connect() as wire:
        await ask(wire, "mode:fail rate_limited 3600", "r1")  # which says: not before an hour
        (retrying,) = await until(ksi, "completion:retrying")
        assert retrying["delay_s"] == 3600
        assert (retrying["kind"], retrying["failures"]) == ("rate_limited", 1)
        await ask(wire, "echo: behind", "r2")
        await ask(wire, "echo: beside", "r3", "t")
        assert (await until(ksi, "completion:result"))[0]["request_id"] == "r3"
        one = await status(ksi, "r1")
        assert (one["process_state"], one["failures"], one["position"]) == ("retry", 1, 0)
        assert one["last_failure"]["reason"] == "as_asked"
        assert (await status(ksi, "r2"))["position"] == 1
        waiting = await ksi.call_raw("completion:retry_status")
        assert [(each["request_id"], each["reason"]) for each in waiting["retrying"]] == [("r1", "as_asked")]
        assert (waiting["count"], waiting["by_reason"]) == (1, {"as_asked": 1})
        assert 0 < waiting["retrying"][0]["delay_s"] <= retrying["delay_s"]
        assert (await status(ksi))["retrying_count"] == 1


async def test_what_is_behind_one_that_waits_for_its_next_try_comes_after_it() -> None:
    async with daemon(attempts=2) as ksi, ksi.connect() as wire:
        await ask(wire, "mode:fail rate_limited 0.2", "r1")
        await until(ksi, "completion:retrying")
        await ask(wire, "echo: behind", "r2")
        await until(ksi, "completion:result")
        ended = [event["request_id"] for event in ksi.emitted() if "reference" in event]
        assert ended == ["r1", "r2"]
        assert (await status(ksi, "r1"))["process_state"] == "dead"


async def test_a_restart_in_the_middle_of_a_back_off_keeps_its_time(tmp_path: Path) -> None:
    clock = FakeClock()
    async with daemon(tmp_path / "var", clock=clock, attempts=2) as ksi, ksi.connect() as wire:
        await ask(wire, "mode:fail rate_limited 3600", "r1")
        await until(ksi, "completion:retrying")
        (before,) = (await ksi.call_raw("completion:retry_status"))["retrying"]
    async with daemon(tmp_path / "var", clock=clock, attempts=2) as ksi:
        (after,) = (await ksi.call_raw("completion:retry_status"))["retrying"]
        assert after["next_try"] == before["next_try"]
        assert ksi.emitted("completion:started") == []
    clock.advance(3599.8)
    async with daemon(tmp_path / "var", clock=clock, attempts=2) as ksi:
        (failed,) = await until(ksi, "completion:failed")
        assert (failed["attempt"], len(await until(ksi, "completion:retrying"))) == (2, 1)
        one = await status(ksi, "r1")
        assert (one["attempts"], one["failures"]) == (2, 2)


async def test_a_completion_in_back_off_is_cancelled_at_once_and_the_queue_behind_it_goes_on() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await ask(wire, "mode:fail rate_limited 3600", "r1")
        await until(ksi, "completion:retrying")
        await ask(wire, "echo: behind", "r2")
        reply = (await wire.call("completion:cancel", {"request_id": "r1"}))["data"]
        assert (reply["status"], reply["proof"]["how"]) == ("cancelled", "between_attempts")
        (result,) = await until(ksi, "completion:result")
        assert result["request_id"] == "r2"
        assert (await status(ksi))["retrying_count"] == 0


# Limits


async def test_the_limit_of_the_queue_holds_for_what_comes_at_once() -> None:
    async with daemon(queue=5) as ksi, ksi.connect() as wire:
        await wire.call("completion:pause")
        for number in range(20):
            wire.send(
                {
                    "event": "completion:async",
                    "id": f"q{number}",
                    "data": {"prompt": "echo: x", "session_id": f"s{number}"},
                }
            )
        answers = [await wire.receive() for _ in range(20)]
        refusals = [answer["error"] for answer in answers if answer["type"] == "error"]
        assert len(refusals) == 15
        assert {error["details"]["reason"] for error in refusals} == {"queue_full"}
        assert all(error["details"]["retry_after_s"] > 0 for error in refusals)
        assert (await status(ksi))["queued_count"] == 5


async def test_a_request_is_answered_again_though_its_prompt_file_or_provider_is_gone(tmp_path: Path) -> None:
    home = tmp_path / "var"
    asked = {"prompt_file": "p.txt", "request_id": "r1", "session_id": "s"}
    async with daemon(home) as ksi, ksi.connect() as wire:
        prompt = ksi.paths.home / "lib" / "p.txt"
        prompt.parent.mkdir(exist_ok=True)
        prompt.write_text("echo: hi")
        assert (await wire.call("completion:async", asked))["type"] == "reply"
        await until(ksi, "completion:result")
        prompt.unlink()
        again = await wire.call("completion:async", asked)
        assert (again["data"]["status"], again["data"]["session_id"]) == ("completed", "s")
        other = await wire.call("completion:async", {**asked, "request_id": "r2"})
        assert other["error"]["details"]["reason"] == "no_prompt_file"
        mocked = {"prompt": "hi", "request_id": "m1", "provider": "mock", "session_id": "t"}
    async with daemon(home, mock={}) as ksi, ksi.connect() as wire:
        assert (await wire.call("completion:async", mocked))["type"] == "reply"
        await until(ksi, "completion:result", 2)
    async with daemon(home) as ksi, ksi.connect() as wire:
        again = await wire.call("completion:async", mocked)
        assert again["data"]["status"] == "completed"
        other = await wire.call("completion:async", {**mocked, "request_id": "m2"})
        assert other["error"]["details"]["reason"] == "provider_missing"


async def test_an_answer_of_three_megabytes_is_given_in_pieces_and_by_its_reference() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        wire.send(
            {
                "event": "completion:stream",
                "id": "a",
                "data": {"prompt": "mode:long 3000000", "request_id": "r1"},
            }
        )
        steps: list[Frame] = []
        while (frame := await wire.receive())["type"] == "item":
            steps.append(frame["data"])
        assert frame["type"] == "end", frame
        assert sum(len(step["text"]) for step in steps if step["type"] == "delta") == 3_000_000
        assert (steps[-1]["type"], steps[-1]["text"]) == ("result", None)
        one = await status(ksi, "r1", include_response=True)
        assert (one["state"], one["response"]) == ("completed", None)
        reference = one["reference"]
        assert reference["length"] > 3_000_000
        wire.send({"event": "blob:read", "id": "b", "data": {"reference": reference}})
        chunks = 0
        while (frame := await wire.receive())["type"] == "item":
            chunks += 1
        assert (frame["type"], chunks > 1) == ("end", True)


# What a request may say


async def test_what_a_request_says_of_tools_and_form_reaches_the_provider_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ksi_completion.providers.embedded import EmbeddedProvider
    from ksi_completion.providers.interface import Job

    jobs: list[Job] = []
    start = EmbeddedProvider.start

    async def noted(provider: EmbeddedProvider, job: Job) -> Any:
        jobs.append(job)
        return await start(provider, job)

    monkeypatch.setattr(EmbeddedProvider, "start", noted)
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    said: Frame = {
        "tools": [tool],
        "allowed_tools": ["look", "mcp__ksi__read"],
        "response_schema": {"type": "object"},
        "agent_id": "ada",
        "workflow_id": "w1",
        "originator_agent_id": "eve",
        "purpose": "test",
    }
    async with daemon(tmp_path / "var") as ksi, ksi.connect() as wire:
        await wire.call("completion:pause")
        await ask(wire, "echo: x", "r1", **said)
    async with daemon(tmp_path / "var") as ksi, ksi.connect() as wire:
        await wire.call("completion:resume")
        await until(ksi, "completion:started")
        one = await status(ksi, "r1")
        assert [one[name] for name in ("agent_id", "workflow_id", "originator_agent_id", "purpose")] == [
            "ada",
            "w1",
            "eve",
            "test",
        ]
        await wire.call("completion:cancel", {"request_id": "r1"})
    (job,) = jobs
    assert (list(job.tools), job.response_schema) == ([tool], {"type": "object"})
    assert list(job.allowed_tools or ()) == ["look", "mcp__ksi__read"]
    assert (job.agent_id, job.timeout_s) == ("ada", 300.0)


async def test_a_provider_that_cannot_be_held_to_tools_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    from ksi_completion.providers.embedded import EmbeddedProvider

    monkeypatch.setattr(EmbeddedProvider, "restricts_tools", False)
    async with daemon() as ksi, ksi.connect() as wire:
        error = await refused(wire, "completion:async", prompt="echo: x", allowed_tools=[])
        assert (error["code"], error["details"]["reason"]) == ("FAILED_PRECONDITION", "cannot_restrict_tools")
        assert ksi.emitted("completion:accepted") == []


# Bugs


def break_the_end_of(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    """Let each end of these completions meet a bug."""
    end = Ending.end

    async def end_badly(ending: Ending, row: Row, outcome: Outcome) -> Any:
        if row.request_id in names:
            raise RuntimeError("a bug")
        return await end(ending, row, outcome)

    monkeypatch.setattr(Ending, "end", end_badly)


async def test_a_completion_that_meets_a_bug_each_time_is_set_aside_and_the_others_are_answered(
    monkeypatch: pytest.MonkeyPatch, log_file: Any, tmp_path: Path
) -> None:
    broken = ["r1"]
    break_the_end_of(monkeypatch, broken)
    home = tmp_path / "var"
    with log_file.written():
        async with daemon(home, retry_delay_s=0.01) as ksi, ksi.connect() as wire:
            await ask(wire, "echo: poisoned", "r1")
            await ask(wire, "echo: behind", "r2")
            await ask(wire, "echo: beside", "r3", "t")
            assert {event["request_id"] for event in await until(ksi, "completion:result", 2)} == {"r2", "r3"}
            (added,) = await until(ksi, "deadletter:added")
            assert (added["origin"], added["name"], added["attempts"]) == ("completion", "r1", 3)
            assert (await status(ksi))["dead"] == ["r1"]
            paid = "SELECT attempt, outcome FROM token_usage WHERE request_id = 'r1' ORDER BY attempt"
            assert [tuple(row) for row in await ksi.daemon.database.read(paid)] == [
                (1, "failed"),
                (2, "failed"),
                (3, "failed"),
            ]
            assert (await status(ksi, "r1"))["process_state"] == "dead"
            edit = {"id": added["id"], "data": {"prompt": "echo: another"}}
            refused = (await wire.call("deadletter:edit", edit))["error"]
            assert refused["details"]["reason"] == "no_data"
            wire.send(
                {
                    "event": "completion:stream",
                    "id": "f",
                    "data": {"prompt": "echo: poisoned", "request_id": "r1", "session_id": "s"},
                }
            )
            told = await wire.receive()
            assert told["error"]["details"]["reason"] == "completion_dead"
        assert log_file.lines("child.crashed") == []
    broken.clear()
    async with daemon(home) as ksi, ksi.connect() as wire:
        assert (await status(ksi))["dead"] == ["r1"]
        await ksi.call_raw("deadletter:redrive", {"ids": [added["id"]]})
        await until(ksi, "completion:result", 3)
        assert (await status(ksi, "r1"))["state"] == "completed"
        assert (await status(ksi))["dead"] == []


async def test_a_completion_that_is_set_aside_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch, log_file: Any
) -> None:
    broken = ["r1"]
    break_the_end_of(monkeypatch, broken)
    with log_file.written():
        async with daemon(retry_delay_s=0.01) as ksi, ksi.connect() as wire:
            await ask(wire, "echo: poisoned", "r1")
            await until(ksi, "deadletter:added")
            broken.clear()
            reply = (await wire.call("completion:cancel", {"request_id": "r1"}))["data"]
            assert reply["status"] == "cancelled"
            assert (await status(ksi))["dead"] == []


async def test_one_that_is_set_aside_and_cancelled_is_not_asked_though_it_is_to_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, log_file: Any
) -> None:
    broken = ["r1"]
    break_the_end_of(monkeypatch, broken)
    with log_file.written():
        async with daemon(retry_delay_s=0.01) as ksi, ksi.connect() as wire, ksi.connect() as other:
            await ask(wire, "echo: poisoned", "r1")
            (added,) = await until(ksi, "deadletter:added")
            broken.clear()
            ending, gate, end = asyncio.Event(), asyncio.Event(), Ending.end

            async def end_late(self: Ending, row: Row, outcome: Outcome) -> Any:
                ending.set()
                await gate.wait()
                return await end(self, row, outcome)

            monkeypatch.setattr(Ending, "end", end_late)
            wire.send({"event": "completion:cancel", "id": "c", "data": {"request_id": "r1"}})
            await ending.wait()
            answer = await other.call("deadletter:redrive", {"ids": [added["id"]]})
            assert answer["data"]["redriven"] == [added["id"]]
            gate.set()
            assert (await wire.receive())["data"]["status"] == "cancelled"
            await ask(other, "echo: behind", "r2")  # its turn in the session is after that of r1
            await until(ksi, "completion:result")
            asked = [event["request_id"] for event in ksi.emitted("completion:started")]
            assert asked == ["r1", "r1", "r1", "r2"]


# Disks


async def test_a_session_whose_file_cannot_be_written_is_seen_and_holds_nobody_up(log_file: Any) -> None:
    with log_file.written():
        async with daemon(concurrency=1) as ksi, ksi.connect() as wire:
            path = ksi.paths.home / "logs" / "responses" / "s.jsonl"
            path.mkdir(parents=True)
            await ask(wire, "echo: kept", "r1")
            await ask(wire, "echo: behind", "r2")
            async with asyncio.timeout(PATIENCE_S):
                while not (found := await status(ksi))["unstored"]:
                    await until(ksi, "completion:started")
            (unstored,) = found["unstored"]
            assert (unstored["request_id"], unstored["session_id"]) == ("r1", "s")
            assert "s.jsonl" in unstored["error"]
            assert (await status(ksi, "r1"))["process_state"] == "success"
            await ask(wire, "echo: beside", "r3", "t")
            assert (await until(ksi, "completion:result"))[0]["request_id"] == "r3"
            health = (await ksi.call_raw("system:health"))["checks"]["providers"]
            assert (health["status"], health["detail"]["unstored"]) == ("degraded", 1)
            path.rmdir()
            ended = await until(ksi, "completion:result", 3)
            assert [event["request_id"] for event in ended] == ["r3", "r1", "r2"]
            assert (await status(ksi))["unstored"] == []
            (line, _) = [json.loads(text) for text in path.read_text().splitlines()]
            assert (line["response"]["result"], line["ksi"]["attempt"]) == ("kept", 1)


# Starts


async def test_a_start_looks_at_no_session_that_only_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "var"
    async with daemon(home) as ksi, ksi.connect() as wire:
        await wire.call("completion:pause")
        for number in range(50):
            await ask(wire, "echo: x", f"r{number}", f"s{number}")
    reads: list[str] = []
    read = Database.read

    async def noted(database: Database, sql: str, parameters: Any = ()) -> Any:
        if "completion" in sql:
            reads.append(sql)
        return await read(database, sql, parameters)

    monkeypatch.setattr(Database, "read", noted)
    async with daemon(home) as ksi:
        assert len(reads) < 10
        assert len(ksi.daemon.services.get(OpenCompletions)) == 50
        await ksi.call_raw("completion:resume")
        await until(ksi, "completion:result", 50)
