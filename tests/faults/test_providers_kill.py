"""Providers in a daemon of their own: the last word of each completion, and what a daemon's death leaves."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil
import pytest

from ksi_client import AsyncClient
from ksi_common.errors import FailedPrecondition
from ksi_common.events import completion
from ksi_common.events.completion import Step
from tests.support import fake_messages, fake_openai
from tests.support.completion_audit import check_completions
from tests.support.daemon_process import DaemonProcess
from tests.support.fake_messages import FakeMessages, said
from tests.support.fake_openai import FakeOpenAI
from tests.support.provider_cases import NO_CLAUDE, NO_LITELLM, PARROT
from tests.support.waiting import eventually

CLAUDE = pytest.mark.skipif(NO_CLAUDE is not None, reason=str(NO_CLAUDE))
LITELLM = pytest.mark.skipif(NO_LITELLM is not None, reason=str(NO_LITELLM))
PATIENCE_S = 90.0
"""A net: the CLI and litellm take seconds of a whole core to start."""

pytestmark = pytest.mark.timeout(240)


@asynccontextmanager
async def daemon_with(providers: Mapping[str, Any], **settings: Any) -> AsyncIterator[DaemonProcess]:
    """Run a daemon whose processes can be told from others by its folder; none of them is left at its end."""
    daemon = DaemonProcess()
    table = {"retry_delay_s": 0.05, **settings, "providers": providers}
    daemon.environ |= {"KSI_PLUGINS": json.dumps({"completion": table}), "MY_KEY": f"sk-{daemon.base.name}"}
    async with daemon:
        yield daemon
        if daemon.serving.is_set():
            await daemon.stop()
        await eventually(lambda: _none_left(daemon))


async def _none_left(daemon: DaemonProcess) -> bool:
    return not processes_of(daemon)


def processes_of(daemon: DaemonProcess) -> list[int]:
    """List what runs with a variable of this daemon: each of its providers' processes has its key."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = process.environ()
        except (psutil.Error, OSError):
            continue
        is_own = f"sk-{daemon.base.name}" in environ.values() and process.status() != "zombie"
        if is_own and "KSI_PLUGINS" not in environ:
            found.append(process.pid)
    return found


def claude(api: FakeMessages) -> Mapping[str, Any]:
    return {"claude-cli": {"base_url": api.url, "api_key_env": "MY_KEY"}}


def litellm(api: FakeOpenAI) -> Mapping[str, Any]:
    model = {"model": "openai/gpt-4o", "api_base": f"{api.url}/v1", "api_key_env": "MY_KEY"}
    return {"litellm": {"models": {"fake": model}}}


async def steps_of(daemon: DaemonProcess, prompt: str, provider: str, **fields: Any) -> list[Step]:
    """Ask, and follow to the last word."""
    asked = completion.StreamCompletion(prompt=prompt, provider=provider, **fields)
    async with AsyncClient(daemon.socket) as client:
        return [step async for step in client.stream(asked, timeout_s=PATIENCE_S)]


async def begin(daemon: DaemonProcess, **fields: Any) -> None:
    """Ask, and wait for the first it says; an event would tell that to nobody who comes late."""
    asked = completion.StreamCompletion(prompt="Hi", session_id="s", request_id="r1", **fields)
    async with AsyncClient(daemon.socket) as client:
        async for step in client.stream(asked, timeout_s=PATIENCE_S):
            if step.type == "delta":
                break


async def logged_until(daemon: DaemonProcess, last: str) -> list[str]:
    """Read what the log says of completions up to the first event ``last``: who joins late misses none."""
    names = []
    async with AsyncClient(daemon.socket) as client:
        async for event in client.subscribe("completion:*", start="beginning"):
            names.append(event.event)
            if event.event == last:
                break
    return names


@CLAUDE
async def test_a_session_of_the_cli_goes_on_through_failures_and_keeps_what_it_was_told() -> None:
    plan = [
        fake_messages.says("One."),
        fake_messages.refuses(529, "overloaded_error"),
        fake_messages.refuses(429, "rate_limit_error", retry_after="0"),
        fake_messages.says("Two."),
        fake_messages.refuses(401, "authentication_error"),
    ]
    async with fake_messages.fake_messages(*plan) as api, daemon_with(claude(api), attempts=5) as daemon:
        first = await steps_of(daemon, "One?", "claude-cli", session_id="s", system="Count.")
        second = await steps_of(daemon, "Two?", "claude-cli", session_id="s")
        turns = [turn for turn in said(api.requests[3]) if turn[0] != "system"]
        system = json.dumps(api.requests[3].body["system"])
        third = await steps_of(daemon, "Three?", "claude-cli", session_id="s")
        await daemon.stop()
        outcomes = await check_completions(daemon.home, [steps[0].request_id for steps in (first, second)])
    assert (first[-1].type, first[-1].text) == ("result", "One.")
    assert first[-1].usage is not None
    assert (first[-1].usage.prompt_tokens, first[-1].usage.completion_tokens) == (16, 5)
    assert [(step.type, step.reason) for step in second if step.type == "retrying"] == [
        ("retrying", "overloaded"),
        ("retrying", "rate_limited"),
    ]
    assert (second[-1].type, second[-1].usage) == ("result", first[-1].usage)
    assert turns == [("user", ["One?"]), ("assistant", ["One."]), ("user", ["Two?"])]
    assert "Count." in system
    assert third[-1].failure is not None
    assert (third[-1].type, third[-1].failure.reason) == ("failed", "unauthenticated")
    assert sorted(outcomes.values()) == ["completed", "completed", "failed"]


@CLAUDE
async def test_a_session_that_the_cli_forgot_is_told_to_it_again() -> None:
    async with fake_messages.fake_messages() as api, daemon_with(claude(api)) as daemon:
        await steps_of(daemon, "One?", "claude-cli", session_id="s")
        for path in (daemon.home / "state" / "claude-cli").rglob("*.jsonl"):
            path.unlink()
        last = (await steps_of(daemon, "Two?", "claude-cli", session_id="s"))[-1]
    assert last.type == "result"
    ((_, (text,)),) = [turn for turn in said(api.requests[-1]) if turn[0] == "user"]
    assert '{"user": "One?"}\n{"assistant": "Hello"}' in text


@CLAUDE
async def test_the_cli_dies_with_a_daemon_that_is_killed_and_is_asked_again() -> None:
    plan = [fake_messages.begins("Hel"), fake_messages.says("Hello")]
    async with fake_messages.fake_messages(*plan) as api, daemon_with(claude(api)) as daemon:
        await killed_in_the_middle(daemon, "claude-cli", None)
        turns = [turn for turn in said(api.requests[-1]) if turn[0] != "system"]
    assert turns == [("user", ["Hi"])]


@LITELLM
async def test_litellm_dies_with_a_daemon_that_is_killed_and_is_asked_again() -> None:
    plan = [fake_openai.begins("Hel"), fake_openai.says("Hello")]
    async with fake_openai.fake_openai(*plan) as api, daemon_with(litellm(api)) as daemon:
        await killed_in_the_middle(daemon, "litellm", "fake")


async def killed_in_the_middle(daemon: DaemonProcess, provider: str, model: str | None) -> None:
    await begin(daemon, provider=provider, model=model)
    assert processes_of(daemon)
    await daemon.kill()
    await eventually(lambda: _none_left(daemon))
    await daemon.start()
    steps = await steps_of(daemon, "Hi", provider, model=model, session_id="s", request_id="r1")
    assert (steps[-1].type, steps[-1].text) == ("result", "Hello")
    await daemon.stop()
    assert await check_completions(daemon.home, ["r1"]) == {"r1": "completed"}


@LITELLM
async def test_a_worker_of_litellm_that_is_killed_is_replaced_and_the_request_is_answered() -> None:
    plan = [fake_openai.begins("Hel"), fake_openai.says("Hello")]
    async with fake_openai.fake_openai(*plan) as api, daemon_with(litellm(api)) as daemon:
        await begin(daemon, provider="litellm")
        for pid in processes_of(daemon):
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        steps = await steps_of(daemon, "Hi", "litellm", session_id="s", request_id="r1")
        last = steps[-1]
        logged = await logged_until(daemon, "completion:result")
        maps = psutil.Process(daemon.pid).memory_maps()
    assert (last.type, last.text) == ("result", "Hello")
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.cached_tokens, last.usage.completion_tokens) == (11, 3, 5)
    assert "completion:retrying" in logged
    assert not [found.path for found in maps if "litellm" in found.path], "the daemon does not import it"


@pytest.mark.parametrize(("provider", "extra"), [("litellm", "litellm"), ("claude-cli", "claude")])
async def test_a_provider_that_is_not_installed_names_the_command_that_does_it(
    provider: str, extra: str
) -> None:
    hidden = (
        "import sys; sys.prefix = '/nowhere'; from importlib import util; found = util.find_spec; "
        "util.find_spec = lambda name, *more: None if name in ('litellm', 'claude_agent_sdk') "
        "else found(name, *more); import runpy; runpy.run_module('ksi_daemon', run_name='__main__')"
    )
    daemon = DaemonProcess(program=("-c", hidden), environ={"PATH": "/nowhere"})
    async with daemon, AsyncClient(daemon.socket) as client:
        with pytest.raises(FailedPrecondition, match=rf"\./ksi install {extra}\b"):
            await client.call(completion.Async(prompt="Hi", provider=provider))


async def test_a_program_of_ones_own_is_a_provider_by_its_name() -> None:
    async with daemon_with({"jsonl-cli": {"parrot": {"file": str(PARROT)}}}) as daemon:
        first = await steps_of(daemon, "Pretty Polly", "parrot", model="loud", session_id="s")
        refused = await steps_of(daemon, "nonsense", "parrot", session_id="s")
    assert (first[-1].type, first[-1].text) == ("result", "PRETTY POLLY")
    assert refused[-1].failure is not None
    assert (refused[-1].failure.reason, refused[-1].failure.retryable) == ("nonsense", False)
