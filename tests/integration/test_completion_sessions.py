"""Sessions of completions: what a provider that keeps them is told, forks, and one at a time on each."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksi_common.events.completion import Proof
from ksi_completion.providers.interface import Job, ProviderFailure, size_of
from ksi_completion.providers.mock import MockGeneration, MockProvider
from ksi_daemon.plugin import Leases
from ksi_daemon.testing import RunningDaemon, Wire, running_daemon
from tests.support.asking import until

Frame = dict[str, Any]


class Keeper:
    """What a provider that keeps its sessions was told; it forgets those that are ``lost``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[Job] = []
        self.lost: set[str] = set()
        self.fails = 0
        start = MockProvider.start

        async def kept(provider: MockProvider, job: Job) -> MockGeneration:
            self.jobs.append(job)
            assert job.characters == size_of(job.messages)
            if job.provider_session in self.lost:
                raise ProviderFailure("No conversation found", reason="session_lost", kind="invalid")
            if self.fails:
                self.fails -= 1
                raise ProviderFailure("overloaded", reason="overloaded")
            generation = await start(provider, job)
            ident = job.provider_session or f"own-{len(self.jobs)}"
            turn = f"turn-{len(self.jobs)}"
            generation._answer = replace(generation._answer, provider_session=ident, resume_at=turn)
            return generation

        monkeypatch.setattr(MockProvider, "start", kept)
        monkeypatch.setattr(MockProvider, "keeps_sessions", True)

    @property
    def last(self) -> Job:
        """The last job."""
        return self.jobs[-1]

    def session(self) -> str | None:
        """Its own id of the session, as the last job had it."""
        return self.jobs[-1].provider_session

    def told(self) -> Sequence[str]:
        """What the last job had of messages."""
        return [message.content for message in self.last.messages]


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    return Keeper(monkeypatch)


@asynccontextmanager
async def daemon(home: Path | None = None, **settings: Any) -> AsyncIterator[RunningDaemon]:
    table = {"mock": {"models": ["mock", "other"]}, "provider": "mock", "retry_delay_s": 0.01, **settings}
    async with running_daemon(home=home, settings={"plugins": {"completion": table}}) as ksi:
        yield ksi


async def ask(wire: Wire, prompt: str, **fields: Any) -> Frame:
    """Ask in session s, and give the last step."""
    data = {"prompt": prompt, "session_id": "s", **fields}
    wire.send({"event": "completion:stream", "data": data, "id": "ask"})
    step: Frame = {}
    while (frame := await wire.receive())["type"] == "item":
        step = frame["data"]
    assert frame["type"] == "end", frame
    return step


# What the provider keeps


async def test_a_provider_that_keeps_its_sessions_is_told_the_new_prompt_only(keeper: Keeper) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await ask(wire, "one")
        assert keeper.session() is None
        assert keeper.told() == ["one"]
        await ask(wire, "two")
        assert (keeper.session(), keeper.last.resume_at) == ("own-1", "turn-1")
        assert keeper.told() == ["two"]
        state = await ksi.call_raw("completion:session_status", {"session_id": "s"})
        assert (state["provider"], state["model"], state["provider_session"]) == ("mock", "mock", "own-1")


async def test_what_the_result_said_of_the_session_outlives_a_restart(keeper: Keeper, tmp_path: Path) -> None:
    async with daemon(tmp_path / "var") as ksi, ksi.connect() as wire:
        await ask(wire, "one")
    async with daemon(tmp_path / "var") as ksi, ksi.connect() as wire:
        await ask(wire, "two")
        assert (keeper.session(), keeper.last.resume_at) == ("own-1", "turn-1")
        assert keeper.told() == ["two"]


async def test_a_try_again_resumes_at_the_last_good_turn_and_never_repeats_a_prompt(keeper: Keeper) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await ask(wire, "one")
        keeper.fails = 2
        assert (await ask(wire, "two"))["attempt"] == 3
        assert {(job.provider_session, job.resume_at) for job in keeper.jobs[1:]} == {("own-1", "turn-1")}
        assert [job.messages[-1].content for job in keeper.jobs] == ["one", "two", "two", "two"]


async def test_another_model_is_told_everything_and_the_answer_says_that_it_changed(keeper: Keeper) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        assert (await ask(wire, "one"))["provider_changed"] is False
        last = await ask(wire, "two", model="other", request_id="r2")
        assert last["provider_changed"] is True
        assert keeper.session() is None
        assert keeper.told() == ["one", "one", "two"]
        assert [event["provider_changed"] for event in ksi.emitted("completion:result")] == [False, True]
        one = (await ksi.call_raw("completion:status", {"request_id": "r2"}))["completion"]
        assert one["provider_changed"] is True
        # Neither goes the first one on where it was: it has not heard the second turn.
        await ask(wire, "three", model="mock")
        assert keeper.session() is None
        assert keeper.told() == ["one", "one", "two", "two", "three"]


async def test_a_session_that_the_provider_forgot_is_told_again_from_the_file(
    keeper: Keeper, tmp_path: Path
) -> None:
    async with daemon(tmp_path / "var") as ksi, ksi.connect() as wire:
        await ask(wire, "one")
    keeper.lost.add("own-1")
    async with daemon(tmp_path / "var") as ksi, ksi.connect() as wire:
        last = await ask(wire, "two", request_id="r2")
        assert (last["type"], last["attempt"]) == ("result", 2)
        assert keeper.session() is None
        assert keeper.told() == ["one", "one", "two"]
        (retrying,) = ksi.emitted("completion:retrying")
        assert (retrying["reason"], retrying["delay_s"], retrying["failures"]) == ("session_lost", 0.0, 0)
        await ask(wire, "three")
        assert keeper.session() == "own-3"
        assert keeper.told() == ["three"]


async def test_a_session_that_is_lost_anew_each_time_fails(keeper: Keeper) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await ask(wire, "one")
        keeper.lost |= {"own-1", None}  # type: ignore[arg-type]  # not even a new one
        last = await ask(wire, "two")
        assert (last["type"], last["failure"]["reason"]) == ("failed", "session_lost")
        assert len(keeper.jobs) == 3


async def test_a_whole_conversation_begins_a_session_of_the_provider_anew(keeper: Keeper) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await ask(wire, "one")
        said = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
        data = {"messages": said, "session_id": "s", "request_id": "r2"}
        assert (await wire.call("completion:async", data))["type"] == "reply"
        await ask(wire, "last")
        assert (keeper.jobs[1].provider_session, len(keeper.jobs[1].messages)) == (None, 3)
        assert keeper.session() == "own-2"
        assert keeper.told() == ["last"]


# Forks


async def test_a_fork_goes_on_from_an_answer_and_leaves_the_session_as_it_is(keeper: Keeper) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        for number, prompt in enumerate(("one", "two", "three")):
            await ask(wire, prompt, request_id=f"r{number}")
        forked = await ksi.call_raw(
            "conversation:fork", {"session_id": "s", "request_id": "r1", "new_session_id": "f"}
        )
        assert forked == {"session_id": "f", "forked_from": "s", "request_id": "r1", "messages": 4}
        await ask(wire, "four", session_id="f")
        assert keeper.session() is None
        assert keeper.told() == ["one", "one", "two", "two", "four"]
        again = await ksi.call_raw("conversation:fork", {"session_id": "f"})
        await ask(wire, "five", session_id=again["session_id"])
        assert keeper.told() == ["one", "one", "two", "two", "four", "four", "five"]
        await ask(wire, "next")
        assert keeper.session() == "own-1"
        assert keeper.told() == ["next"]
        read = await ksi.call_raw("conversation:get", {"session_id": "f"})
        assert [message["content"] for message in read["messages"]] == [
            "one", "one", "two", "two", "four", "four",
        ]  # fmt: skip
        assert read["total"] == 6
        listed = (await ksi.call_raw("conversation:list"))["conversations"]
        assert {each["session_id"]: each["forked_from"] for each in listed} == {
            "s": None,
            "f": "s",
            again["session_id"]: "f",
        }
        assert len(ksi.emitted("conversation:forked")) == 2


async def test_a_fork_of_nothing_or_onto_something_is_refused(keeper: Keeper) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        await ask(wire, "one")
        for data, code in (
            ({"session_id": "none"}, "NOT_FOUND"),
            ({"session_id": "s", "request_id": "none"}, "NOT_FOUND"),
            ({"session_id": "s", "new_session_id": "s"}, "ALREADY_EXISTS"),
        ):
            assert (await wire.call("conversation:fork", data))["error"]["code"] == code


# One at a time


async def test_nobody_begins_on_a_session_that_another_may_be_at_work_on() -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        leases: Leases = ksi.daemon.services.get(Leases)  # type: ignore[type-abstract]
        await leases.acquire("completion/session/s", "a process that could not be ended", 60.0)
        await wire.call("completion:async", {"prompt": "one", "session_id": "s", "request_id": "r1"})
        (retrying,) = await until(ksi, "completion:retrying")
        assert (retrying["reason"], retrying["delay_s"] > 30) == ("session_busy", True)
        assert (await ask(wire, "beside", session_id="t"))["type"] == "result"
        assert [event["session_id"] for event in ksi.emitted("completion:started")] == ["t"]


async def test_who_begins_after_one_that_could_not_be_ended_waits_until_that_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cannot(_: MockGeneration) -> Proof:
        raise ProviderFailure("process 7 cannot be killed", reason="not_killed")

    monkeypatch.setattr(MockGeneration, "cancel", cannot)
    async with daemon() as ksi, ksi.connect() as wire:
        last = await ask(wire, "one", request_id="r1")
        assert (last["type"], last["failure"]["reason"]) == ("failed", "not_killed")
        asked = {"prompt": "two", "session_id": "s", "request_id": "r2"}
        wire.send({"event": "completion:stream", "data": asked, "id": "two"})
        while (step := (await wire.receive())["data"])["type"] not in {"retrying", "failed", "result"}:
            assert step["type"] != "started"
        assert (step["type"], step["reason"]) == ("retrying", "session_busy")


async def test_what_one_did_who_lost_the_session_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with daemon() as ksi, ksi.connect() as wire:
        leases: Leases = ksi.daemon.services.get(Leases)  # type: ignore[type-abstract]
        database = ksi.daemon.database

        async def steal(job: Job) -> None:
            if job.attempt == 1:
                await database.write_apart(lambda tx: leases.revoke_in(tx, "completion/session/s"))

        start = MockProvider.start

        async def robbed(provider: MockProvider, job: Job) -> MockGeneration:
            await steal(job)
            return await start(provider, job)

        monkeypatch.setattr(MockProvider, "start", robbed)
        last = await ask(wire, "one", request_id="r1")
        assert (last["type"], last["attempt"]) == ("result", 2)
        (retrying,) = ksi.emitted("completion:retrying")
        assert retrying["reason"] == "lease_lost"
        path = ksi.paths.home / "logs" / "responses" / "s.jsonl"
        (line,) = [json.loads(text) for text in path.read_text().splitlines()]
        assert line["ksi"]["attempt"] == 2
        assert path.with_name("s.jsonl.torn").exists()


async def test_a_daemon_that_was_killed_holds_no_session(keeper: Keeper, tmp_path: Path) -> None:
    home = tmp_path / "var"
    async with daemon(home) as ksi, ksi.connect() as wire:
        await ask(wire, "one", request_id="r1")
        leases: Leases = ksi.daemon.services.get(Leases)  # type: ignore[type-abstract]
        # As a kill in the middle of the next one leaves it.
        await wire.call("completion:pause")
        await wire.call("completion:async", {"prompt": "two", "session_id": "s", "request_id": "r2"})
        await leases.acquire("completion/session/s", "the daemon before", 1000.0)
    async with daemon(home) as ksi, ksi.connect() as wire:
        await wire.call("completion:resume")
        last = await ask(wire, "three")
        assert (last["type"], last["attempt"]) == ("result", 1)
        assert [event["reason"] for event in ksi.emitted("completion:retrying")] == []
