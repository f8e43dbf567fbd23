"""How the Claude CLI is asked; what it makes of it is tested where it is installed."""

import json
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ksi_completion.providers.claude_cli import ClaudeCliProvider
from ksi_completion.providers.claude_settings import ClaudeCliSettings
from ksi_completion.providers.interface import Job, ProviderFailure
from ksi_completion.providers.litellm import LitellmProvider
from ksi_completion.providers.litellm_settings import LitellmSettings
from ksi_daemon.processes import Processes
from tests.children import marks
from tests.support.workers import job, text_of

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "fake_claude.py"
SESSION, TURN = str(uuid.uuid4()), str(uuid.uuid4())


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ksi") as made:
        yield Path(made)


def asked(*said: str, **fields: Any) -> Job:
    return job(*said, model="sonnet", **fields)


async def how(folder: Path, wanted: Job, **settings: Any) -> dict[str, Any]:
    """Ask, and give how the program was asked."""
    given = ClaudeCliSettings.model_validate({"command": [sys.executable, "-I", str(PROGRAM)], **settings})
    async with Processes(folder) as processes:
        provider = ClaudeCliProvider(processes, folder / "state", folder / "run", given)
        try:
            answer: dict[str, Any] = json.loads(await text_of(await provider.start(wanted)))
        finally:
            await provider.close()
        assert marks(folder) == []
    assert list((folder / "run" / "claude-cli").iterdir()) == []
    return answer


async def test_it_is_asked_in_json_and_has_no_tools_that_nobody_gave_it(folder: Path) -> None:
    made = await how(folder, asked("/cost @/etc/passwd"))
    assert made["stdin"] == {
        "type": "user",
        "message": {"role": "user", "content": "/cost @/etc/passwd"},
        "client_composed": True,
    }
    flags = made["flags"]
    assert (flags["model"], flags["tools"], flags["setting-sources"]) == ("sonnet", "", "")
    assert flags["input-format"] == flags["output-format"] == "stream-json"
    assert not {"allowedTools", "mcp-config", "resume", "json-schema", "permission-mode"} & flags.keys()
    assert str(uuid.UUID(flags["session-id"])) == flags["session-id"]
    assert made["files"] == {"system-prompt-file": "You are a helpful assistant."}


async def test_a_session_goes_on_behind_its_last_good_turn(folder: Path) -> None:
    flags = (await how(folder, asked("Hi", provider_session=SESSION, resume_at=TURN)))["flags"]
    assert (flags["resume"], flags["resume-session-at"]) == (SESSION, TURN)
    assert "session-id" not in flags


async def test_tools_become_flags_and_servers_a_file(folder: Path) -> None:
    servers = {
        "near": {"command": "near-server", "args": ["a"], "env": {"TOKEN": "secret"}},
        "far": {"url": "https://far.example/mcp", "headers": {"X": "1"}},
        "unused": {"command": "unused-server"},
    }
    tools = ["Read", "Bash(git log:*)", "mcp__near", "mcp__far__look"]
    made = await how(folder, asked("Hi"), tools=tools, mcp_servers=servers, permission_mode="plan")
    assert made["flags"]["tools"] == "Read,Bash"
    assert made["flags"]["allowedTools"] == ",".join(tools)
    assert made["flags"]["permission-mode"] == "plan"
    assert json.loads(made["files"]["mcp-config"])["mcpServers"] == {
        "near": {"type": "stdio", "command": "near-server", "args": ["a"], "env": {"TOKEN": "secret"}},
        "far": {"type": "http", "url": "https://far.example/mcp", "headers": {"X": "1"}},
    }
    fewer = await how(
        folder, asked("Hi", allowed_tools=["mcp__near__find"]), tools=tools, mcp_servers=servers
    )
    assert (fewer["flags"]["tools"], fewer["flags"]["allowedTools"]) == ("", "mcp__near__find")
    assert list(json.loads(fewer["files"]["mcp-config"])["mcpServers"]) == ["near"]


async def test_limits_and_a_schema_are_passed_on(folder: Path) -> None:
    wanted = asked("Hi", max_tokens=7, response_schema={"type": "object"}, timeout_s=9.5)
    made = await how(folder, wanted, max_budget_usd=0.5, base_url="http://127.0.0.1:1", env={"MOOD": "good"})
    assert made["flags"]["json-schema"] == '{"type":"object"}'
    assert float(made["flags"]["max-budget-usd"]) == 0.5
    env = made["env"]
    assert (env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"], env["API_TIMEOUT_MS"], env["MOOD"]) == ("7", "9500", "good")
    assert env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:1"
    assert env["CLAUDE_CONFIG_DIR"].startswith(str(folder))


async def test_the_one_key_that_is_named_is_the_only_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "OTHER_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, f"sk-{name}")
    named = (await how(folder, asked("Hi"), api_key_env="OTHER_KEY"))["env"]
    assert named["ANTHROPIC_API_KEY"] == "sk-OTHER_KEY"
    assert not {"CLAUDE_CODE_OAUTH_TOKEN", "OTHER_KEY", "OPENAI_API_KEY"} & named.keys()
    default = (await how(folder, asked("Hi")))["env"]
    assert default["ANTHROPIC_API_KEY"] == "sk-ANTHROPIC_API_KEY"
    assert "OPENAI_API_KEY" not in default
    (folder / "key").write_text("")
    with pytest.raises(ProviderFailure, match="is empty"):
        await how(folder, asked("Hi"), api_key_file=folder / "key")


async def test_its_own_system_prompt_may_be_kept(folder: Path) -> None:
    made = await how(folder, asked("Hi", system="Be brief."), own_system=True)
    assert made["files"] == {"append-system-prompt-file": "Be brief."}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"allowed_tools": ["Read"]}, "tool_not_allowed"),
        ({"tools": [{"name": "f"}]}, "no_tools"),
        ({"provider_session": "--version"}, "session_lost"),
        ({"provider_session": SESSION, "resume_at": "x"}, "session_lost"),
        ({"response_schema": {"description": "x" * 200_000}}, "too_large"),
    ],
)
async def test_what_it_cannot_be_asked_is_refused(folder: Path, fields: Any, reason: str) -> None:
    with pytest.raises(ProviderFailure) as refused:
        await how(folder, asked("Hi", **fields))
    assert (refused.value.kind, refused.value.reason) == ("invalid", reason)


async def test_a_prompt_that_it_would_not_read_is_refused(folder: Path) -> None:
    with pytest.raises(ProviderFailure) as refused:
        await how(folder, asked("x" * 10_000_001))
    assert refused.value.reason == "too_large"


async def test_a_python_without_litellm_is_said(folder: Path) -> None:
    settings = LitellmSettings.model_validate({"models": {"m": {"model": "m"}}, "python": sys.executable})
    async with Processes(folder) as processes:
        provider = LitellmProvider(processes, settings)
        with pytest.raises(ProviderFailure) as refused:
            await provider.start(job("Hi", model="m"))
        await provider.close()
    assert refused.value.kind == "not_deployed"
    assert "cannot import litellm" in refused.value.message
