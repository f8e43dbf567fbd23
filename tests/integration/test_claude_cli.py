"""The Claude CLI itself, as a provider of completions, with a service on loopback that is planned."""

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksi_common.events.completion import ChatMessage, Usage
from ksi_completion.providers.claude_cli import ClaudeCliProvider
from ksi_completion.providers.interface import Answer, Job, ProviderFailure
from ksi_daemon.processes import Processes
from ksi_daemon.runner import descendants
from tests.children import marks
from tests.support.fake_messages import (
    Answer as Plan,
)
from tests.support.fake_messages import (
    FakeMessages,
    begins,
    cuts,
    fake_messages,
    hangs,
    refuses,
    said,
    says,
    uses,
)
from tests.support.provider_cases import NO_CLAUDE, claude
from tests.support.waiting import eventually
from tests.support.workers import alive, failure_of, first_of, job, kill, text_of

MCP_SERVER = Path(__file__).resolve().parents[1] / "support" / "mcp_server.py"
WEATHER = {"weather": {"command": sys.executable, "args": [str(MCP_SERVER)], "env": {"VARIABLE": "inside"}}}

USAGE = Usage(prompt_tokens=16, completion_tokens=5, cached_tokens=3, cache_creation_tokens=2)
"""Of one call of the fake service."""

pytestmark = [
    pytest.mark.skipif(NO_CLAUDE is not None, reason=str(NO_CLAUDE)),
    pytest.mark.timeout(90),  # the CLI takes half a second of a whole core to start
]


class World:
    """The provider, its service and its folder."""

    def __init__(self, processes: Processes, folder: Path, api: FakeMessages) -> None:
        self.processes = processes
        self.folder = folder
        self.api = api
        self.provider = claude(processes, folder, api)

    def provide(self, **settings: Any) -> ClaudeCliProvider:
        """Have it set otherwise."""
        self.provider = claude(self.processes, self.folder, self.api, **settings)
        return self.provider

    async def ask(self, asked: Job, *plan: Plan) -> Answer:
        """Get an answer; the service answers as planned."""
        self.api.plan.extend(plan)
        generation = await self.provider.start(asked)
        assert await text_of(generation) == generation.answer.text
        return generation.answer

    async def fail(self, asked: Job, *plan: Plan) -> ProviderFailure:
        """Get a failure."""
        self.api.plan.extend(plan)
        failure = await failure_of(await self.provider.start(asked))
        self.api.plan.clear()
        return failure

    def turns(self) -> list[tuple[str, list[str]]]:
        """List what was said in the last request, without what the CLI says of its machine."""
        return [(role, texts) for role, texts in said(self.api.requests[-1]) if role != "system"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with Processes(tmp_path / "run") as processes, fake_messages() as api:
        world = World(processes, tmp_path, api)
        try:
            yield world
        finally:
            await world.provider.close()
        assert marks(tmp_path / "run") == []
        assert list((tmp_path / "run").glob("claude-cli/*")) == [], "what was written for a run is removed"


def asked(*said_: str, **fields: Any) -> Job:
    return job(*said_, model="sonnet", **fields)


def resumed(prompt: str, answer: Answer, **fields: Any) -> Job:
    return asked(prompt, provider_session=answer.provider_session, resume_at=answer.resume_at, **fields)


async def test_an_answer_comes_with_its_usage_and_its_session(world: World) -> None:
    generation = await world.provider.start(asked("Hi", system="Be brief."))
    assert await text_of(generation) == "Hello"
    answer = generation.answer
    assert answer.usage.cost_usd is not None
    assert answer.usage.model_copy(update={"cost_usd": None}) == USAGE
    assert (answer.model, answer.finish_reason) == ("claude-sonnet-5-5", "stop")
    assert str(uuid.UUID(answer.provider_session)) == answer.provider_session
    assert answer.response["session_id"] == answer.provider_session
    (request,) = world.api.requests
    assert world.turns() == [("user", ["Hi"])]
    assert "Be brief." in json.dumps(request.body["system"])
    assert request.headers["x-api-key"] == "fake"
    assert not request.body.get("tools")


async def test_a_session_goes_on_and_each_call_is_counted_once(world: World) -> None:
    first = await world.ask(asked("One?"), says("One."))
    second = await world.ask(resumed("Two?", first), says("Two."))
    assert world.turns() == [("user", ["One?"]), ("assistant", ["One."]), ("user", ["Two?"])]
    assert second.provider_session == first.provider_session
    assert second.usage == first.usage, "not the session's sum, which the CLI calls total_cost_usd"
    assert second.response["total_cost_usd"] > first.response["total_cost_usd"]  # type: ignore[operator]


async def test_what_a_session_is_told_may_change(world: World) -> None:
    first = await world.ask(asked("One?", system="Be brief."))
    await world.ask(resumed("Two?", first, system="Be long."))
    system = json.dumps(world.api.requests[-1].body["system"])
    assert "Be long." in system
    assert "Be brief." not in system


async def test_a_turn_that_failed_is_not_said_twice(world: World) -> None:
    first = await world.ask(asked("One?"), says("One."))
    again = resumed("Two?", first)
    for _ in range(2):
        assert (await world.fail(again, refuses(529, "overloaded_error"))).kind == "transient"
    await world.ask(again, says("Two."))
    assert world.turns() == [("user", ["One?"]), ("assistant", ["One."]), ("user", ["Two?"])]


async def test_a_first_turn_that_failed_is_begun_anew(world: World) -> None:
    await world.fail(asked("One?"), refuses(529, "overloaded_error"))
    await world.ask(asked("One?"), says("One."))
    assert world.turns() == [("user", ["One?"])]


async def test_a_cancelled_turn_is_no_part_of_the_session(world: World) -> None:
    first = await world.ask(asked("One?"), says("One."))
    world.api.plan.append(begins("Tw"))
    generation = await world.provider.start(resumed("Two?", first))
    await first_of(generation)
    await generation.cancel()
    await world.ask(resumed("Three?", first), says("Three."))
    assert world.turns() == [("user", ["One?"]), ("assistant", ["One."]), ("user", ["Three?"])]


async def test_a_conversation_that_the_cli_does_not_know_is_told_to_it(world: World) -> None:
    await world.ask(asked("My name is Ada.", "Hello\nAda", "My name?"))
    ((role, (text,)),) = world.turns()
    assert role == "user"
    assert '{"user": "My name is Ada."}\n{"assistant": "Hello\\nAda"}\n' in text
    assert text.endswith("\n\nMy name?")


@pytest.mark.parametrize("gone", ["session", "turn", "--version"])
async def test_a_session_that_is_lost_says_so(world: World, gone: str) -> None:
    first = await world.ask(asked("One?"))
    other = str(uuid.uuid4())
    cases: dict[str, dict[str, Any]] = {
        "session": {"provider_session": other},
        "turn": {"provider_session": first.provider_session, "resume_at": other},
        "--version": {"provider_session": "--version"},
    }
    with pytest.raises(ProviderFailure) as failed:
        await text_of(await world.provider.start(asked("Two?", **cases[gone])))
    assert (failed.value.reason, failed.value.kind) == ("session_lost", "invalid")
    assert len(world.api.requests) == 1


STATUSES = [
    (400, "invalid_request_error", "invalid", "refused"),
    (401, "authentication_error", "auth", "unauthenticated"),
    (402, "billing_error", "auth", "billing"),
    (403, "permission_error", "auth", "forbidden"),
    (404, "not_found_error", "invalid", "no_model"),
    (413, "request_too_large", "invalid", "too_large"),
    (429, "rate_limit_error", "rate_limited", "rate_limited"),
    (500, "api_error", "transient", "server_error"),
    (529, "overloaded_error", "transient", "overloaded"),
]


@pytest.mark.parametrize(("status", "type_", "kind", "reason"), STATUSES)
async def test_a_refusal_has_the_class_of_its_status(
    world: World, status: int, type_: str, kind: str, reason: str
) -> None:
    failure = await world.fail(asked("Hi"), *[refuses(status, type_)] * 4)
    assert (failure.kind, failure.reason) == (kind, reason), failure.message


async def test_the_service_says_when_to_come_back_and_nobody_waits_inside(world: World) -> None:
    failure = await world.fail(asked("Hi"), refuses(429, "rate_limit_error", retry_after="60"))
    assert (failure.kind, failure.reason) == ("rate_limited", "rate_limited")
    assert failure.retry_after_s is not None
    assert failure.retry_after_s >= 60
    assert len(world.api.requests) == 1


async def test_a_service_that_hangs_is_given_up(world: World) -> None:
    world.provide(api_timeout_s=1)
    failure = await world.fail(asked("Hi"), hangs(), hangs())
    assert failure.kind == "transient", failure.message


async def test_an_answer_that_is_cut_is_no_answer(world: World) -> None:
    failure = await world.fail(asked("Hi"), cuts("Hel"), cuts("Hel"))
    assert failure.kind == "transient", failure.message


async def test_an_answer_that_never_ends_is_a_failure_with_its_cost(world: World) -> None:
    failure = await world.fail(asked("Hi"), *[says("On and ", stop_reason="max_tokens")] * 4)
    assert (failure.kind, failure.reason) == ("invalid", "max_tokens")
    assert failure.usage is not None
    assert failure.usage.completion_tokens == 4 * USAGE.completion_tokens


async def test_an_answer_as_long_as_was_asked_is_one(world: World) -> None:
    long = [says("On and on", stop_reason="max_tokens"), begins("and "), begins("and ")]
    answer = await world.ask(asked("Hi", max_tokens=7), *long)
    assert (answer.text, answer.finish_reason) == ("On and on", "length")
    assert world.api.requests[0].body["max_tokens"] == 7
    assert answer.usage.completion_tokens >= USAGE.completion_tokens
    world.api.plan.clear()
    await world.ask(resumed("Go on", answer))
    assert world.turns()[:2] == [("user", ["Hi"]), ("assistant", ["On and on"])]


@pytest.mark.parametrize("prompt", ["hi @/etc/hostname", "/cost", "/help me", "--version", "!ls", "#note"])
async def test_no_text_of_a_prompt_is_a_command(world: World, prompt: str) -> None:
    await world.ask(asked(prompt))
    assert world.turns() == [("user", [prompt])]


async def test_a_tool_of_an_mcp_server_is_used(world: World) -> None:
    world.provide(mcp_servers=WEATHER, tools=["mcp__weather__weather"])
    answer = await world.ask(
        asked("Rain?"), uses("mcp__weather__weather", place="Ulm"), says("It ", "rains.")
    )
    assert answer.text == "It rains."
    assert answer.usage.completion_tokens == 2 * USAGE.completion_tokens
    result = world.api.requests[-1].body["messages"][-1]["content"][0]
    assert "rain {'place': 'Ulm'} inside" in json.dumps(result)
    await world.ask(resumed("And now?", answer))
    assert world.turns()[-1] == ("user", ["And now?"])


async def test_a_tool_is_not_used_again_because_the_service_was_busy_after_it(world: World) -> None:
    path = world.folder / "made"
    world.provide(tools=["Bash"])
    act = uses("Bash", command=f"echo once >> {path}")
    answer = await world.ask(asked("Do it"), act, refuses(529, "overloaded_error"), says("Done."))
    assert answer.text == "Done."
    assert path.read_text() == "once\n"


async def test_a_tool_that_a_request_may_not_use_is_not_there(world: World) -> None:
    world.provide(mcp_servers=WEATHER, tools=["mcp__weather__weather", "Read"])
    await world.ask(asked("Rain?", allowed_tools=["Read"]), says("No idea."))
    tools = [tool["name"] for tool in world.api.requests[-1].body["tools"]]
    assert [name for name in tools if not name.startswith("Deferred")] == ["Read"]
    await world.ask(asked("Rain?", allowed_tools=[]), says("No idea."))
    assert not world.api.requests[-1].body.get("tools")


async def test_a_tool_that_the_settings_do_not_have_is_refused(world: World) -> None:
    world.provide(tools=["Bash(git log:*)", "mcp__weather"], mcp_servers=WEATHER)
    for wanted in ("Bash", "Bash(rm:*)", "Write", "mcp__other__tool", "mcp__weather__a,Write"):
        with pytest.raises(ProviderFailure) as refused:
            await world.provider.start(asked("Hi", allowed_tools=[wanted]))
        assert (refused.value.kind, refused.value.reason) == ("invalid", "tool_not_allowed")
    await world.ask(asked("Hi", allowed_tools=["Bash(git log:*)", "mcp__weather__weather"]))


async def test_a_server_that_does_not_start_is_a_failure(world: World) -> None:
    world.provide(mcp_servers={"weather": {"command": "/nowhere/server"}}, tools=["mcp__weather"])
    failure = await failure_of(await world.provider.start(asked("Rain?")))
    assert (failure.kind, failure.reason) == ("not_deployed", "mcp_failed")


async def test_a_tool_nobody_allowed_is_denied_and_said(world: World) -> None:
    world.provide(tools=["Bash(git log:*)"])
    path = world.folder / "made"
    answer = await world.ask(asked("Do it"), uses("Bash", command=f"touch {path}"), says("I may not."))
    assert not path.exists()
    assert answer.response["permission_denials"]


async def test_a_schema_gives_a_structure_and_the_session_goes_on(world: World) -> None:
    schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
    world.api.plan.append(uses("StructuredOutput", capital="Paris"))
    generation = await world.provider.start(asked("France?", response_schema=schema))
    assert await text_of(generation) == generation.answer.text
    assert generation.answer.structured == {"capital": "Paris"}
    assert json.loads(generation.answer.text) == {"capital": "Paris"}
    await world.ask(resumed("And Italy?", generation.answer))
    assert world.turns()[-1][0] == "user"


@pytest.mark.parametrize("how", ["cancelled", "killed"])
async def test_what_a_tool_has_started_in_a_session_of_its_own_ends_too(world: World, how: str) -> None:
    world.provide(tools=["Bash"])
    command = "setsid sleep 301 & sleep 300; wait"
    world.api.plan.extend([uses("Bash", command=command), says("Done.")])
    generation = await world.provider.start(asked("Sleep"))
    below: list[int] = []

    async def sleeps() -> bool:
        below[:] = descendants(os.getpid())
        return sum(b"sleep" in read(pid, "comm") for pid in below) >= 2

    await eventually(sleeps)
    sleeping = [pid for pid in below if b"sleep" in read(pid, "comm")]
    if how == "killed":
        kill(marks(world.folder / "run")[0]["pid"])
        assert (await failure_of(generation)).kind == "transient"
    else:
        await generation.cancel()
    assert alive(sleeping) == []


def read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


async def test_its_processes_see_no_other_key_and_show_no_prompt(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("CLAUDECODE", "1")
    monkeypatch.setenv("KSI_TOKEN", "secret")
    world.api.plan.append(begins("Hel"))
    generation = await world.provider.start(asked("a secret question", system="a secret order"))
    await first_of(generation)
    (mark,) = marks(tmp_path / "run")
    shown, environ = read(mark["pid"], "cmdline"), read(mark["pid"], "environ")
    await generation.cancel()
    assert b"secret" not in shown
    assert b"fake" not in shown
    assert b"ANTHROPIC_API_KEY=fake" in environ
    assert not any(name in environ for name in (b"OPENAI", b"CLAUDECODE=", b"KSI_", b"secret"))


async def test_a_key_that_is_not_there_is_said_before_anything_runs(world: World) -> None:
    world.provide(api_key_file=world.folder / "absent")
    with pytest.raises(ProviderFailure) as failed:
        await world.provider.start(asked("Hi"))
    assert (failed.value.kind, failed.value.reason) == ("auth", "no_key")
    assert "absent" in failed.value.message


async def test_without_a_key_it_says_where_to_put_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    world.provide(api_key_file=None)
    failure = await failure_of(await world.provider.start(asked("Hi")))
    assert (failure.kind, failure.reason) == ("auth", "unauthenticated")
    assert "ANTHROPIC_API_KEY" in failure.message


async def test_a_setting_that_the_cli_refuses_is_said_with_its_words(world: World) -> None:
    world.provide(env={"CLAUDE_CODE_SUBPROCESS_ENV_SCRUB": "1", "PATH": "/nowhere"})
    failure = await failure_of(await world.provider.start(asked("Hi")))
    assert failure.kind == "not_deployed", failure.message
    assert "exit code 1" in failure.message


async def test_requests_tools_are_refused_for_it_has_its_own(world: World) -> None:
    with pytest.raises(ProviderFailure) as refused:
        await world.provider.start(asked("Hi", tools=[{"type": "function", "function": {"name": "f"}}]))
    assert (refused.value.kind, refused.value.reason) == ("invalid", "no_tools")


async def test_a_long_prompt_and_a_long_system_prompt_arrive_whole(world: World) -> None:
    long = "word " * 160_000
    messages = [ChatMessage.model_construct(role="user", content=long)]
    await world.ask(replace(asked("x", system="Mind. " * 40_000), messages=messages))
    assert world.turns() == [("user", [long])]
    assert len(json.dumps(world.api.requests[-1].body["system"])) > 240_000


async def test_two_sessions_are_answered_side_by_side(world: World) -> None:
    both = asyncio.Barrier(2)

    async def meeting(exchange: Any) -> None:
        async with asyncio.timeout(30):
            await both.wait()
        await says("Met.")(exchange)

    world.api.plan.extend([meeting, meeting])
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(world.ask(asked(prompt))) for prompt in ("a", "b")]
    assert len({task.result().provider_session for task in answers}) == 2
