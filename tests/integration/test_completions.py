"""Completions over the socket: accepted, followed, ended once, whatever the provider does."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksi_common.errors import DeadlineExceeded, KSIError, ResourceExhausted, Unavailable
from ksi_common.events.completion import Asked, ChatMessage, Proof, Step
from ksi_completion import acceptance
from ksi_completion.completion_service import CompletionService
from ksi_completion.conductor import Conductor
from ksi_completion.ending import Ending
from ksi_completion.outcomes import Again, Outcome
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.providers.embedded import EmbeddedProvider
from ksi_completion.providers.worker_generation import WorkerGeneration
from ksi_completion.responses import Responses
from ksi_completion.rows import Row
from ksi_completion.running import Attempt
from ksi_completion.session_manager import Session, SessionManager
from ksi_daemon.database import Database
from ksi_daemon.testing import PATIENCE_S, RunningDaemon, Wire, running_daemon
from tests.support.asking import until

ODD_WORKER = [sys.executable, str(Path(__file__).parents[1] / "support" / "odd_worker.py")]

Frame = dict[str, Any]


@asynccontextmanager
async def daemon(home: Path | None = None, **settings: Any) -> AsyncIterator[RunningDaemon]:
    """Run a daemon whose model is a script that does what the prompt says."""
    table = {"worker": ODD_WORKER, **settings}
    async with running_daemon(home=home, settings={"plugins": {"completion": table}}) as ksi:
        yield ksi


async def ask(wire: Wire, prompt: str, **fields: Any) -> list[Frame]:
    """Ask for a stream and give all its steps."""
    return [step async for step in steps(wire, prompt, **fields)]


async def steps(wire: Wire, prompt: str, ident: str = "ask", **fields: Any) -> AsyncIterator[Frame]:
    data = {"prompt": prompt, **fields}
    wire.send({"event": "completion:stream", "data": data, "id": ident})
    while True:
        frame = await wire.receive()
        if frame["id"] != ident:
            continue
        if frame["type"] != "item":
            assert frame["type"] == "end", frame
            return
        yield frame["data"]


def lines(ksi: RunningDaemon, session_id: str) -> list[Frame]:
    """Read a session's file of answers."""
    path = ksi.paths.home / "logs" / "responses" / f"{session_id}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def let_confirm(ksi: RunningDaemon, confirm_s: float) -> None:
    """Give workers to come so long to confirm a cancel."""
    provider = ksi.daemon.services.get(ProviderManager).get("embedded")
    assert isinstance(provider, EmbeddedProvider)
    provider._link._settings = replace(provider._link._settings, confirm_s=confirm_s)


async def failure_of(ksi: RunningDaemon, prompt: str, **fields: Any) -> Mapping[str, Any]:
    async with ksi.connect() as wire:
        last = (await ask(wire, prompt, **fields))[-1]
    assert last["type"] == "failed", last
    failure: Mapping[str, Any] = last["failure"]
    return failure


# The way of one completion


async def test_an_answer_streams_and_ends_with_the_whole_of_it() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        seen = await ask(wire, "echo: one two three", session_id="s1")
        assert [step["type"] for step in seen[:2]] == ["accepted", "started"]
        assert {step["type"] for step in seen[2:-1]} == {"delta"}
        assert "".join(step["text"] for step in seen[2:-1]) == "one two three"
        last = seen[-1]
        assert (last["type"], last["text"]) == ("result", "one two three")
        (line,) = lines(ksi, "s1")
        assert line["ksi"]["request_id"] == last["request_id"]
        assert line["ksi"]["outcome"] == "result"
        assert line["response"]["result"] == "one two three"


async def test_what_is_told_follows_from_the_request_and_names_the_answer() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        answer = await wire.call(
            "completion:async", {"prompt": "echo: hi", "request_id": "r1"}, correlation_id="c-1"
        )
        assert answer["data"]["status"] == "queued"
        assert answer["data"]["position"] == 0
        await until(ksi, "completion:result")
        told = [event for event in ksi.events("completion:*") if event.seq is not None]
        assert [event.event for event in told] == [
            "completion:accepted",
            "completion:started",
            "completion:result",
        ]
        assert {event.correlation_id for event in told} == {"c-1"}
        assert {event.causation_id for event in told} == {told[0].causation_id}
        assert [(event.stream, event.version) for event in told] == [
            ("completion/r1", version) for version in (1, 2, 3)
        ]
        reference = json.loads(told[-1].data)["reference"]
        content = (ksi.paths.home / reference["path"]).read_bytes()
        line = json.loads(content[reference["offset"] : reference["offset"] + reference["length"]])
        assert line["response"]["result"] == "hi"


async def test_a_session_goes_on_with_what_was_said() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        (first, *_) = await ask(wire, "echo: a")
        session = first["session_id"]
        last = (await ask(wire, "mode:history", session_id=session))[-1]
        said = json.loads(last["text"])
        assert said == [["user", "echo: a"], ["assistant", "a"], ["user", "mode:history"]]
        found = await ksi.call_raw("conversation:list")
        assert [(c["session_id"], c["message_count"]) for c in found["conversations"]] == [(session, 4)]
        read = await ksi.call_raw("conversation:get", {"session_id": session})
        assert [m["role"] for m in read["messages"]] == ["user", "assistant"] * 2


async def test_the_newest_session_is_linked() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await ask(wire, "echo: a", session_id="one")
        await ask(wire, "echo: b", session_id="two")
        latest = ksi.paths.home / "logs" / "responses" / "latest.jsonl"
        assert latest.resolve().name == "two.jsonl"


async def test_status_tells_of_one_completion_with_its_answer() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await ask(wire, "echo: hi", request_id="r1", agent_id="ada", purpose="greeting")
        found = await ksi.call_raw("completion:status", {"request_id": "r1", "include_response": True})
        one = found["completion"]
        assert (one["state"], one["attempts"], one["response"]) == ("completed", 1, "hi")
        assert (one["agent_id"], one["purpose"]) == ("ada", "greeting")
        unknown = await wire.call("completion:status", {"request_id": "r2"})
        assert unknown["error"]["code"] == "NOT_FOUND"


# One request, one completion


async def test_the_same_request_again_is_the_same_completion() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        first = await ask(wire, "echo: hi", request_id="r1")
        again = await ask(wire, "echo: hi", request_id="r1")
        assert again == [first[-1]]
        reply = await wire.call("completion:async", {"prompt": "echo: hi", "request_id": "r1"})
        assert reply["data"]["status"] == "completed"
        assert len(ksi.emitted("completion:accepted")) == 1


async def test_a_completion_asked_again_under_its_key_is_the_same_one() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        data = {"prompt": "echo hi"}
        frames = [await wire.call("completion:async", data, idempotency_key="k") for _ in range(2)]
        assert frames[0]["data"] == frames[1]["data"]
        await until(ksi, "completion:result")
    assert len(ksi.emitted("completion:accepted")) == 1


async def test_the_same_request_id_for_something_else_is_refused() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await ask(wire, "echo: hi", request_id="r1")
        for other in ({"prompt": "echo: ho"}, {"prompt": "echo: hi", "max_tokens": 5}):
            answer = await wire.call("completion:async", {**other, "request_id": "r1"})
            assert answer["error"]["code"] == "ALREADY_EXISTS"
        assert ksi.emitted("completion:accepted") != []


async def test_a_second_follower_gets_what_was_said_so_far(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with daemon() as ksi, ksi.connect() as one, ksi.connect() as two:
        mine = steps(one, f"mode:gate {gate}", request_id="r1")
        while (await anext(mine))["type"] != "delta":
            pass
        following = steps(two, f"mode:gate {gate}", request_id="r1")
        while (step := await anext(following))["type"] != "delta":
            pass
        gate.touch()
        theirs = [step] + [step async for step in following]
        rest = [step async for step in mine]
        assert "".join(step["text"] for step in theirs if step["type"] == "delta") == theirs[-1]["text"]
        assert theirs[-1] == rest[-1]


async def test_a_client_that_leaves_does_not_stop_its_completion() -> None:
    async with daemon() as ksi:
        async with ksi.connect() as wire:
            following = steps(wire, "mode:slow 3 0.05", request_id="r1")
            while (await anext(following))["type"] != "delta":
                pass
        (result,) = await until(ksi, "completion:result")
        assert result["request_id"] == "r1"


# Order


async def test_one_session_is_answered_in_order_and_others_beside_it() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        for number, prompt in enumerate(("mode:hang", "echo: 1", "echo: 2")):
            await wire.call(
                "completion:async", {"prompt": prompt, "session_id": "a", "request_id": f"a{number}"}
            )
        await until(ksi, "completion:started")
        await wire.call("completion:async", {"prompt": "echo: b", "session_id": "b", "request_id": "b0"})
        await until(ksi, "completion:result")
        started = [event["request_id"] for event in ksi.emitted("completion:started")]
        assert started == ["a0", "b0"]
        await wire.call("completion:cancel", {"request_id": "a0"})
        ended = [event["request_id"] for event in await until(ksi, "completion:result", 3)]
        assert ended == ["b0", "a1", "a2"]


async def test_no_more_run_at_once_than_the_setting_allows() -> None:
    async with daemon(concurrency=1) as ksi, ksi.connect() as wire:
        for number in range(3):
            await wire.call("completion:async", {"prompt": "mode:slow 2 0.05", "session_id": f"s{number}"})
        await until(ksi, "completion:result", 3)
        at_work = [
            json.loads(event.data)["session_id"]
            for event in ksi.events("completion:*")
            if event.event in {"completion:started", "completion:delta"}
        ]
        assert at_work == sorted(at_work)
        assert set(at_work) == {"s0", "s1", "s2"}


async def test_a_full_session_refuses_and_says_when_to_come_back() -> None:
    async with daemon(session_queue=2) as ksi, ksi.connect() as wire:
        for _ in range(2):
            await wire.call("completion:async", {"prompt": "mode:hang", "session_id": "a"})
        answer = await wire.call("completion:async", {"prompt": "echo: x", "session_id": "a"})
        assert answer["error"]["code"] == "RESOURCE_EXHAUSTED"
        assert answer["error"]["details"]["retry_after_s"] > 0
        other = await wire.call("completion:async", {"prompt": "echo: x", "session_id": "b"})
        assert other["type"] == "reply"


async def test_a_full_queue_refuses() -> None:
    async with daemon(queue=2) as ksi, ksi.connect() as wire:
        for number in range(2):
            await wire.call("completion:async", {"prompt": "mode:hang", "session_id": f"s{number}"})
        answer = await wire.call("completion:async", {"prompt": "echo: x"})
        assert answer["error"]["details"]["reason"] == "queue_full"


async def test_a_full_queue_does_not_keep_anyone_from_what_is_in_it() -> None:
    async with daemon(queue=1) as ksi, ksi.connect() as wire:
        data = {"prompt": "mode:hang", "request_id": "r1"}
        await wire.call("completion:async", data)
        again = await wire.call("completion:async", data)
        assert again["data"]["request_id"] == "r1"


# Cancel


async def test_a_queued_completion_is_cancelled_and_the_queue_goes_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with daemon() as ksi, ksi.connect() as wire:
        for name, prompt in (("r1", f"mode:gate {gate}"), ("r2", "echo: two"), ("r3", "echo: three")):
            await wire.call("completion:async", {"prompt": prompt, "session_id": "s", "request_id": name})
        reply = (await wire.call("completion:cancel", {"request_id": "r2"}))["data"]
        assert (reply["status"], reply["proof"]["how"]) == ("cancelled", "not_started")
        gate.touch()
        ended = [event["request_id"] for event in await until(ksi, "completion:result", 2)]
        assert ended == ["r1", "r3"]
        assert [line["ksi"]["outcome"] for line in lines(ksi, "s")].count("cancelled") == 1
        assert len(ksi.emitted("completion:cancelled")) == 1


async def test_nothing_is_before_a_completion_that_has_ended() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        hang, stopped = ({"prompt": "mode:hang", "session_id": "s", "request_id": name} for name in "ab")
        await wire.call("completion:async", hang)
        assert (await wire.call("completion:async", stopped))["data"]["position"] == 1
        await wire.call("completion:cancel", {"request_id": "b"})
        again = (await wire.call("completion:async", stopped))["data"]
        assert (again["status"], again["position"]) == ("cancelled", 0)


async def test_a_streaming_completion_is_cancelled_with_the_worker_s_word_for_it() -> None:
    async with daemon() as ksi, ksi.connect() as wire, ksi.connect() as other:
        let_confirm(ksi, PATIENCE_S)
        following = steps(wire, "mode:slow 1000 0.05", request_id="r1")
        while (await anext(following))["type"] != "delta":
            pass
        reply = (await other.call("completion:cancel", {"request_id": "r1"}))["data"]
        assert (reply["status"], reply["proof"]["how"]) == ("cancelled", "confirmed")
        rest = [step async for step in following]
        assert rest[-1]["type"] == "cancelled"
        assert (await ask(wire, "echo: next"))[-1]["text"] == "next"


async def test_a_completion_whose_worker_is_starting_is_cancelled() -> None:
    async with daemon(worker=[*ODD_WORKER, "silent"]) as ksi, ksi.connect() as wire:
        await wire.call("completion:async", {"prompt": "echo: x", "request_id": "r1"})
        await until(ksi, "completion:started")
        reply = (await wire.call("completion:cancel", {"request_id": "r1"}))["data"]
        assert (reply["status"], reply["proof"]["how"]) == ("cancelled", "not_started")
        assert ksi.emitted("completion:delta") == []
        assert len(ksi.emitted("completion:cancelled")) == 1


async def test_a_worker_that_ignores_the_cancel_is_killed_and_the_others_are_answered() -> None:
    async with daemon() as ksi, ksi.connect() as wire, ksi.connect() as other:
        await other.call("completion:async", {"prompt": "mode:slow 4 0.05", "request_id": "r2"})
        following = steps(wire, "mode:ignore_cancel", request_id="r1")
        while (step := await anext(following))["type"] != "delta":
            pass
        reply = (await other.call("completion:cancel", {"request_id": "r1"}))["data"]
        assert (reply["status"], reply["proof"]["how"]) == ("cancelled", "killed")
        assert reply["proof"]["elapsed_s"] > 1.9, "it had its time to confirm the cancel"
        assert int(step["text"]) in reply["proof"]["pids_gone"]
        again = (await other.call("completion:cancel", {"request_id": "r1"}))["data"]
        assert again == reply
        (result,) = await until(ksi, "completion:result")
        assert result["request_id"] == "r2"


async def test_the_time_limit_does_not_break_off_the_proof_of_a_cancel() -> None:
    async with daemon() as ksi, ksi.connect() as wire, ksi.connect() as other:
        let_confirm(ksi, 5.0)
        await ask(wire, "echo: the worker is there")
        following = steps(wire, "mode:ignore_cancel", request_id="r1", timeout_s=4.0)
        while (step := await anext(following))["type"] != "delta":
            pass
        reply = (await other.call("completion:cancel", {"request_id": "r1"}))["data"]
        assert (reply["status"], reply["proof"]["how"]) == ("cancelled", "killed")
        with pytest.raises(ProcessLookupError):
            os.kill(int(step["text"]), 0)


async def test_a_wish_does_not_break_off_the_end_of_what_ran_out_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ending = asyncio.Event()
    stop = WorkerGeneration.cancel

    async def watched(generation: WorkerGeneration) -> Proof:
        ending.set()
        return await stop(generation)

    monkeypatch.setattr(WorkerGeneration, "cancel", watched)
    async with daemon() as ksi, ksi.connect() as wire, ksi.connect() as other:
        await ask(wire, "echo: the worker is there")
        ending.clear()
        following = steps(wire, "mode:ignore_cancel", request_id="r1", timeout_s=3.0)
        while (step := await anext(following))["type"] != "delta":
            pass
        await ending.wait()
        reply = (await other.call("completion:cancel", {"request_id": "r1"}))["data"]
        assert (reply["status"], reply["state"]) == ("too_late", "failed")
        with pytest.raises(ProcessLookupError):
            os.kill(int(step["text"]), 0)


async def test_a_cancel_is_answered_while_a_start_whose_time_is_over_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It could not set a time limit that was passing already, and was answered INTERNAL."""
    leaving, wished = asyncio.Event(), asyncio.Event()
    stop = Conductor.stop

    async def start(*_: object) -> WorkerGeneration:
        try:
            await asyncio.Event().wait()
        finally:
            leaving.set()
            await wished.wait()
        raise AssertionError

    def noted(conductor: Conductor, row: Row) -> None:
        try:
            stop(conductor, row)
        finally:
            wished.set()

    monkeypatch.setattr(EmbeddedProvider, "start", start)
    monkeypatch.setattr(Conductor, "stop", noted)
    async with daemon() as ksi, ksi.connect() as wire:
        await wire.call("completion:async", {"prompt": "echo: hi", "request_id": "r1", "timeout_s": 0.05})
        await leaving.wait()
        reply = await wire.call("completion:cancel", {"request_id": "r1"})
        assert reply["data"]["status"] == "cancelled", reply


async def test_a_cancel_does_not_wait_for_an_end_that_the_disk_does_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It did where the end that it brought about was the one: until its own deadline."""

    def refuse(*_: object, **__: object) -> None:
        raise Unavailable("the disk is full", reason="store_unavailable")

    async with daemon() as ksi, ksi.connect() as wire, ksi.connect() as other:
        following = steps(wire, "mode:hang", request_id="r1")
        while (await anext(following))["type"] != "delta":
            pass
        with monkeypatch.context() as patched:
            patched.setattr(Responses, "store", refuse)
            reply = await other.call("completion:cancel", {"request_id": "r1"})
            assert (reply["data"]["status"], reply["data"]["state"]) == ("too_late", "running")
        assert [step async for step in following][-1]["type"] == "cancelled"


async def test_cancelling_twice_gives_the_same_proof_and_an_ended_one_is_too_late() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await wire.call("completion:async", {"prompt": "mode:hang", "request_id": "r1"})
        first = (await wire.call("completion:cancel", {"request_id": "r1"}))["data"]
        again = (await wire.call("completion:cancel", {"request_id": "r1"}))["data"]
        assert first["proof"]["how"] == again["proof"]["how"]
        await ask(wire, "echo: x", request_id="r2")
        late = (await wire.call("completion:cancel", {"request_id": "r2"}))["data"]
        assert (late["status"], late["state"]) == ("too_late", "completed")
        assert len(ksi.emitted("completion:cancelled")) == 1


async def test_a_cancel_that_an_answer_overtakes_tells_of_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate, find = tmp_path / "gate", CompletionService._row
    async with daemon() as ksi, ksi.connect() as wire:
        await wire.call("completion:async", {"prompt": f"mode:gate {gate}", "request_id": "r1"})
        await ksi.wait_emitted("completion:started")

        async def find_slowly(self: CompletionService, request_id: str) -> Row:
            row = await find(self, request_id)
            if not gate.exists():
                gate.touch()
                await ksi.wait_emitted("completion:result")
            return row

        monkeypatch.setattr(CompletionService, "_row", find_slowly)
        reply = (await wire.call("completion:cancel", {"request_id": "r1"}))["data"]
    assert (reply["status"], reply["state"]) == ("too_late", "completed")


# Failures


async def test_a_worker_that_dies_is_restarted_and_the_answer_comes(tmp_path: Path) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        seen = await ask(wire, f"mode:die_once {tmp_path / 'died'}")
        kinds = [step["type"] for step in seen if step["type"] != "delta"]
        assert kinds == ["accepted", "started", "retrying", "started", "result"]
        assert [step["attempt"] for step in seen if step["type"] == "started"] == [1, 2]
        assert len(lines(ksi, seen[-1]["session_id"])) == 1


async def test_a_bug_in_hearing_a_worker_costs_no_more_than_that_worker(
    monkeypatch: pytest.MonkeyPatch, log_file: Any
) -> None:
    bugs = iter([RuntimeError("a bug")])
    take = WorkerGeneration.take

    def take_badly(generation: WorkerGeneration, report: Any) -> None:
        for bug in bugs:
            raise bug
        take(generation, report)

    monkeypatch.setattr(WorkerGeneration, "take", take_badly)
    with log_file.written():
        async with daemon() as ksi, ksi.connect() as wire:
            seen = await ask(wire, "echo: hi")
            assert [step["reason"] for step in seen if step["type"] == "retrying"] == ["bug"]
            assert seen[-1]["text"] == "hi"
            assert (await ask(wire, "echo: again"))[-1]["text"] == "again"
    assert len(log_file.lines("worker.bug")) == 1


async def test_a_worker_that_always_dies_fails_the_completion_for_good() -> None:
    async with daemon(attempts=2) as ksi:
        failure = await failure_of(ksi, "mode:die", request_id="r1")
        assert failure["reason"] == "worker_died"
        assert [event["request_id"] for event in ksi.emitted("completion:failed")] == ["r1"]
        assert len(ksi.emitted("completion:retrying")) == 1


@pytest.mark.parametrize("tokens", [-1, 2**63])
async def test_a_count_of_tokens_that_cannot_be_kept_fails_the_completion(tokens: int) -> None:
    async with daemon(attempts=1) as ksi:
        assert (await failure_of(ksi, f"mode:usage {tokens}"))["reason"] == "worker_garbled"


async def test_a_silent_provider_has_stalled() -> None:
    async with daemon(stall_s=0.3, attempts=1) as ksi:
        assert (await failure_of(ksi, "mode:hang"))["reason"] == "stalled"


async def test_time_runs_out() -> None:
    async with daemon() as ksi:
        failure = await failure_of(ksi, "mode:slow 1000 0.05", timeout_s=0.5)
        assert (failure["reason"], failure["retryable"]) == ("timed_out", True)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "INVALID_ARGUMENT"),
        ({"prompt": ""}, "INVALID_ARGUMENT"),
        ({"prompt": " \n"}, "INVALID_ARGUMENT"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "INVALID_ARGUMENT"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "INVALID_ARGUMENT"),
        ({"messages": [{"role": "user", "content": ""}]}, "INVALID_ARGUMENT"),
        ({"prompt": "a", "session_id": "../x"}, "INVALID_ARGUMENT"),
        ({"prompt": "a", "model": "gpt-9"}, "NOT_FOUND"),
        ({"prompt": "a", "provider": "nobody"}, "NOT_FOUND"),
        ({"prompt_file": "/etc/passwd"}, "PERMISSION_DENIED"),
        ({"prompt_file": "none.txt"}, "NOT_FOUND"),
    ],
)
async def test_what_cannot_be_asked_is_refused_before_it_is_accepted(
    fields: Mapping[str, Any], code: str
) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        answer = await wire.call("completion:async", fields)
        assert answer["error"]["code"] == code, answer
        assert ksi.emitted("completion:*") == []


async def test_the_settings_are_checked_at_load(log_file: Any) -> None:
    with log_file.written():
        async with daemon(atempts=1) as ksi, ksi.connect() as wire:
            answer = await wire.call("completion:async", {"prompt": "a"})
            assert answer["error"]["code"] == "NOT_FOUND"
            details = await ksi.call_raw("plugin:inspect", {"plugin_name": "completion"})
    assert "plugins.completion.atempts" in details["error"]


# Over restarts


async def test_who_follows_a_completion_when_the_daemon_stops_gets_its_end(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with daemon() as ksi, ksi.connect() as wire, ksi.connect() as other:
        following = steps(wire, f"mode:gate {gate}")
        while (await anext(following))["type"] != "delta":
            pass
        wire.send({"event": "event:subscribe", "data": {"patterns": ["*"]}, "id": "s"})
        await other.call("system:shutdown", {"grace_s": 60})
        gate.touch()
        assert [step["type"] async for step in following][-1] == "result"


async def test_a_bug_of_the_conductor_costs_nobody_an_answer(
    monkeypatch: pytest.MonkeyPatch, log_file: Any
) -> None:
    broken = iter([True, True])
    run_outcome = Attempt.outcome

    async def outcome(run: Attempt) -> Outcome | Again:
        if next(broken, False):
            raise RuntimeError("a bug")
        return await run_outcome(run)

    monkeypatch.setattr(Attempt, "outcome", outcome)
    with log_file.written():
        async with daemon() as ksi, ksi.connect() as wire:
            for number in range(4):
                data = {"prompt": "echo: hi", "session_id": f"s{number % 2}", "request_id": f"r{number}"}
                await wire.call("completion:async", data)
            ended = await until(ksi, "completion:result", 4)
    assert sorted(event["request_id"] for event in ended) == ["r0", "r1", "r2", "r3"]
    assert [event["request_id"] for event in ended if event["session_id"] == "s0"] == ["r0", "r2"]
    assert len(log_file.lines("completion.bug")) == 2
    assert log_file.lines("child.crashed") == []


@pytest.mark.parametrize(
    "refusal",
    [
        Unavailable("cannot store: the disk is full", reason="store_unavailable"),
        DeadlineExceeded("unit of work interrupted", reason="unit_interrupted"),
        ResourceExhausted("too many units wait for the disk", reason="writer_full"),
    ],
    ids=lambda refusal: str(refusal.details["reason"]),
)
async def test_an_end_that_the_database_refuses_for_now_is_written_later(
    monkeypatch: pytest.MonkeyPatch, log_file: Any, refusal: KSIError
) -> None:
    refusals = iter([refusal, refusal])  # a unit that fails is run again, apart from its neighbours
    answered_in = SessionManager.answered_in

    def refuse_once(*arguments: Any, **keywords: Any) -> None:
        for error in refusals:
            raise error
        answered_in(*arguments, **keywords)

    monkeypatch.setattr(SessionManager, "answered_in", refuse_once)
    with log_file.written():
        async with daemon() as ksi, ksi.connect() as wire:
            assert (await ask(wire, "echo: hi", session_id="s"))[-1]["text"] == "hi"
            assert len(lines(ksi, "s")) == 1
    assert log_file.lines("child.crashed") == []
    assert len(log_file.lines("completion.not_stored")) == 1


async def test_a_completion_whose_turn_comes_while_the_disk_is_full_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, log_file: Any
) -> None:
    refusals = iter([Unavailable("cannot store: the disk is full", reason="store_unavailable")])
    write = Database.write

    def refuse_once(database: Database, unit: Any) -> Any:
        if getattr(unit, "__qualname__", "").startswith("Attempt."):
            for error in refusals:
                raise error
        return write(database, unit)

    monkeypatch.setattr(Database, "write", refuse_once)
    with log_file.written():
        async with daemon() as ksi, ksi.connect() as wire:
            seen = await ask(wire, "echo: hi")
    assert [(step["type"], step["attempt"]) for step in seen if step["type"] in {"started", "result"}] == [
        ("started", 1),
        ("result", 1),
    ]
    assert len(log_file.lines("completion.not_stored")) == 1


async def test_a_completion_that_ended_in_a_bug_is_told_so_and_not_run_again(
    monkeypatch: pytest.MonkeyPatch, log_file: Any
) -> None:
    bugs = iter([RuntimeError("a bug")])
    end = Ending.end

    async def end_badly(ending: Ending, row: Row, outcome: Outcome) -> Step:
        last = await end(ending, row, outcome)
        for bug in bugs:
            raise bug
        return last

    monkeypatch.setattr(Ending, "end", end_badly)
    with log_file.written():
        async with daemon() as ksi, ksi.connect() as wire:
            seen = await ask(wire, "echo: hi", session_id="s")
            assert (seen[-1]["type"], seen[-1]["text"]) == ("result", "hi")
            assert [step["type"] for step in seen].count("started") == 1
            assert len(lines(ksi, "s")) == 1
    assert len(log_file.lines("completion.bug")) == 1


async def test_a_wish_to_stop_outlives_a_bug_of_the_conductor(
    monkeypatch: pytest.MonkeyPatch, log_file: Any
) -> None:
    bugs = iter([RuntimeError("a bug")])
    run_outcome = Attempt.outcome

    async def outcome(run: Attempt) -> Outcome | Again:
        if run.row.request_id == "r1":
            for bug in bugs:
                raise bug
        return await run_outcome(run)

    monkeypatch.setattr(Attempt, "outcome", outcome)
    with log_file.written():
        async with daemon() as ksi, ksi.connect() as wire:
            for name in ("r0", "r1"):
                data = {"prompt": "mode:hang", "session_id": "s", "request_id": name}
                await wire.call("completion:async", data)
            await until(ksi, "completion:started")
            reply = (await wire.call("completion:cancel", {"request_id": "r1"}))["data"]
            assert (reply["status"], reply["proof"]["how"]) == ("cancelled", "not_started")
    assert len(log_file.lines("completion.bug")) == 1


async def test_a_drain_ends_with_what_was_stopped_before_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    ending, may_end = asyncio.Event(), asyncio.Event()
    end = Ending.end

    async def end_later(self: Ending, row: Row, outcome: Outcome) -> Step:
        if row.request_id == "r1":
            ending.set()
            await may_end.wait()
        return await end(self, row, outcome)

    monkeypatch.setattr(Ending, "end", end_later)
    async with daemon() as ksi, ksi.connect() as wire, asyncio.TaskGroup() as tasks:
        service = ksi.daemon.services.get(CompletionService)
        for name in ("r0", "r1"):
            data = {"prompt": "mode:hang", "session_id": "s", "request_id": name}
            await wire.call("completion:async", data)
        await until(ksi, "completion:started")
        wire.send({"event": "completion:cancel", "data": {"request_id": "r1"}, "id": "c1"})
        await ending.wait()
        await wire.call("completion:cancel", {"request_id": "r0"})
        drain = tasks.create_task(service.drain())
        await wire.call("completion:status")  # the drain has begun
        assert not drain.done()
        may_end.set()
        async with asyncio.timeout(PATIENCE_S):
            await drain


async def test_what_was_queued_is_answered_by_the_next_daemon(tmp_path: Path) -> None:
    home = tmp_path / "var"
    async with daemon(home) as ksi, ksi.connect() as wire:
        for number in range(3):
            await wire.call(
                "completion:async", {"prompt": "mode:hang", "session_id": "s", "request_id": f"r{number}"}
            )
        await until(ksi, "completion:started")
        await ksi.call_raw("system:shutdown", {"grace_s": 0})
    async with daemon(home) as ksi, ksi.connect() as wire:
        for number in (2, 1, 0):
            reply = await wire.call("completion:cancel", {"request_id": f"r{number}"})
            assert reply["data"]["status"] == "cancelled"
        (retrying,) = await until(ksi, "completion:retrying")
        assert (retrying["request_id"], retrying["reason"]) == ("r0", "daemon_restarted")
        assert sorted(line["ksi"]["request_id"] for line in lines(ksi, "s")) == ["r0", "r1", "r2"]


async def test_a_large_prompt_is_kept_beside_the_log() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        folder = ksi.paths.home / "lib" / "prompts"
        folder.mkdir(parents=True)
        (folder / "large.txt").write_text("echo: " + "x" * 2_000_000)
        accepted = await wire.call(
            "completion:async", {"prompt_file": "prompts/large.txt", "request_id": "r1"}
        )
        assert accepted["type"] == "reply", accepted
        (told,) = ksi.emitted("completion:accepted")
        (message,) = told["messages"]
        assert message["content"] is None
        assert message["reference"]["length"] == 2_000_006
        await until(ksi, "completion:result")


async def test_a_large_prompt_is_hashed_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    beside: list[bool] = []
    in_bytes = acceptance._in_bytes

    def noted(asked: Asked, messages: Sequence[ChatMessage]) -> tuple[str, Sequence[bytes]]:
        beside.append(threading.current_thread() is not threading.main_thread())
        return in_bytes(asked, messages)

    monkeypatch.setattr(acceptance, "_in_bytes", noted)
    async with daemon() as ksi, ksi.connect() as wire:
        for size in (10, 500_000):
            answer = await wire.call("completion:async", {"prompt": "x" * size})
            assert answer["type"] == "reply", answer
    assert beside == [False, True]


async def test_what_the_disk_does_not_give_before_an_attempt_begins_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find, refused = SessionManager.find, 0

    async def refuse(sessions: SessionManager, session_id: str) -> Session:
        nonlocal refused
        refused += 1
        if refused == 1:
            raise Unavailable("cannot read: input/output error", reason="store_unavailable")
        return await find(sessions, session_id)

    monkeypatch.setattr(SessionManager, "find", refuse)
    async with running_daemon(settings={"plugins": {"completion": {"provider": "mock"}}}) as ksi:
        async with ksi.connect() as wire:
            last = (await ask(wire, "hello"))[-1]
        assert (last["type"], last["attempt"]) == ("result", 1)
