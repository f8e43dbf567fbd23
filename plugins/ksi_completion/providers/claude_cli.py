"""The Claude CLI: one run an answer, on sessions that it keeps itself.

The prompt goes in by stdin as ``client_composed``, so that no text of it is a command or names a file to be
read; values stand in the same word as their flag, so that none is another flag. The CLI's own retries and
questions are off: both are KSI's.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Final

from ksi_completion.providers.asking import asked, told
from ksi_completion.providers.claude_reading import ClaudeReading
from ksi_completion.providers.claude_settings import TOOL, ClaudeCliSettings
from ksi_completion.providers.command import MAX_ARGUMENT_BYTES, Commands, Invocation
from ksi_completion.providers.environment import ALWAYS, NETWORK, chosen, key_of
from ksi_completion.providers.generation import FedGeneration
from ksi_completion.providers.installed import Found, advice, on_path, packaged
from ksi_completion.providers.interface import Job, ProviderFailure
from ksi_daemon.plugin import Processes

NAME: Final = "claude-cli"
INSTALL: Final = ("./ksi install claude", "claude-agent-sdk")

MAX_PROMPT_BYTES: Final = 10_000_000
"""More, the CLI does not read."""

_KEYS: Final = (
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
    *("ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS"),
)

_SWITCHES: Final = {
    # It says that it would try again, and when, and is ended: with none it would not say when. Only where it
    # has used a tool it goes on, so that the tool is not used twice.
    "CLAUDE_CODE_MAX_RETRIES": "2",
    "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
}

_FLAGS: Final = (
    *("--print", "--output-format=stream-json", "--input-format=stream-json"),
    *("--verbose", "--include-partial-messages"),
    *(
        "--system-prompt-snapshot=off",
        "--setting-sources=",
        "--strict-mcp-config",
        "--permission-prompts=none",
    ),
)


class ClaudeCliProvider:
    """A CompletionProvider. ``state_dir`` keeps its sessions, ``run_dir`` what a run is to read."""

    name = NAME
    keeps_sessions = True
    restricts_tools = True

    def __init__(
        self, processes: Processes, state_dir: Path, run_dir: Path, settings: ClaudeCliSettings | None = None
    ) -> None:
        self._settings = settings = settings or ClaudeCliSettings()
        self.models: Sequence[str] = settings.models
        self.concurrency = settings.concurrency
        self._config = settings.config_dir or state_dir.absolute() / NAME / "config"
        self._work = settings.work_dir or state_dir.absolute() / NAME / "work"
        self._run_dir = run_dir.absolute() / NAME
        # What a killed daemon had written for its runs.
        rmtree(self._run_dir, ignore_errors=True)
        self._program = Found(_installed)
        self._commands = Commands(processes)

    def missing(self) -> str | None:
        """Say what is not installed, and what to do about it."""
        if self._settings.command or self._program.get():
            return None
        return f"the Claude CLI is not installed; {advice(*INSTALL)}"

    async def start(self, job: Job) -> FedGeneration:
        """Begin an answer; raise ProviderFailure. Cancelling it leaves nothing at work."""
        if problem := self.missing():
            raise ProviderFailure(problem, reason="not_installed", kind="not_deployed")
        if job.tools:
            message = "the Claude CLI takes no tools of a request; it has those of mcp_servers"
            raise ProviderFailure(message, reason="no_tools", kind="invalid")
        tools = self._tools(job)
        servers = [name for name in self._settings.mcp_servers if any(map(_is_of(name), tools))]
        files = self._files(job, servers)
        invocation = Invocation(
            argv=[*self._command(), *_FLAGS, *self._arguments(job, tools, files), *_session(job)],
            env=self._environment(job),
            cwd=self._work,
            purpose=NAME,
            stdin=_prompt(job),
            files=dict(files.values()),
        )
        return await self._commands.start(
            invocation, ClaudeReading(max_tokens=job.max_tokens, servers=servers)
        )

    async def close(self) -> None:
        """End its runs."""
        await self._commands.close()

    def _command(self) -> Sequence[str]:
        return self._settings.command or [self._program.get() or "claude"]

    def _tools(self, job: Job) -> Sequence[str]:
        """Give the tools of this run. Raises ProviderFailure for one that the settings do not have."""
        if job.allowed_tools is None:
            return self._settings.tools
        for wanted in job.allowed_tools:
            if not TOOL.fullmatch(wanted) or not any(_covers(tool, wanted) for tool in self._settings.tools):
                message = (
                    f"tool {wanted!r} is not among those of claude-cli: "
                    f"{', '.join(self._settings.tools) or 'there are none'}; "
                    "plugins.completion.providers.claude-cli.tools has them"
                )
                raise ProviderFailure(message, reason="tool_not_allowed", kind="invalid")
        return job.allowed_tools

    def _files(self, job: Job, servers: Sequence[str]) -> Mapping[str, tuple[Path, bytes]]:
        """Give what is no other user's to see, as arguments are, by the flag that names its file."""
        run = uuid.uuid4().hex
        flag = "append-system-prompt-file" if self._settings.own_system else "system-prompt-file"
        files = {flag: (self._run_dir / f"{run}.txt", told(job, self._settings.system).encode())}
        if servers:
            rendered = {name: self._settings.mcp_servers[name].rendered() for name in servers}
            content = json.dumps({"mcpServers": rendered}).encode()
            files["mcp-config"] = (self._run_dir / f"{run}.json", content)
        return files

    def _arguments(
        self, job: Job, tools: Sequence[str], files: Mapping[str, tuple[Path, bytes]]
    ) -> Sequence[str]:
        own = dict.fromkeys(tool.partition("(")[0] for tool in tools if not tool.startswith("mcp__"))
        values: dict[str, str | None] = {
            "model": job.model,
            "tools": ",".join(own),
            "allowedTools": ",".join(tools) or None,
            "permission-mode": self._settings.permission_mode,
            "json-schema": _schema(job),
        }
        if (budget := self._settings.max_budget_usd) is not None:
            values["max-budget-usd"] = f"{budget:f}"
        values |= {flag: str(path) for flag, (path, _) in files.items()}
        return [f"--{flag}={value}" for flag, value in values.items() if value is not None]

    def _environment(self, job: Job) -> Mapping[str, str]:
        settings = self._settings
        key = key_of(settings.api_key_env, settings.api_key_file)
        timeout_s = min(settings.api_timeout_s, job.timeout_s or settings.api_timeout_s)
        own = {
            "HOME": str(self._config.parent),
            "CLAUDE_CONFIG_DIR": str(self._config),
            "API_TIMEOUT_MS": str(round(timeout_s * 1000)),
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(job.max_tokens) if job.max_tokens else None,
            "ANTHROPIC_API_KEY": key,
            "ANTHROPIC_BASE_URL": settings.base_url,
        }
        passed = (*ALWAYS, *NETWORK, *(() if key else _KEYS), *settings.pass_env)
        given = {name: value for name, value in own.items() if value is not None}
        return chosen(passed) | _SWITCHES | settings.env | given


def _installed() -> str | None:
    return packaged("claude", "claude_agent_sdk", "_bundled/claude") or on_path("claude")


def _is_of(server: str) -> Callable[[str], bool]:
    return lambda tool: tool == f"mcp__{server}" or tool.startswith(f"mcp__{server}__")


def _covers(tool: str, wanted: str) -> bool:
    """Tell whether one who may use a tool may be given another, which is the same or narrower."""
    if tool == wanted:
        return True
    narrower = "__" if tool.startswith("mcp__") else "("
    return tool.count("__") < 2 and "(" not in tool and wanted.startswith(tool + narrower)


def _session(job: Job) -> Sequence[str]:
    """Name the session: a new one, or from the last turn that came to its end.

    What a failed or cancelled turn left behind it is not part of the session: it would be said twice.
    """
    if job.provider_session is None:
        return [f"--session-id={uuid.uuid4()}"]
    flags = [f"--resume={_uuid(job.provider_session)}"]
    return flags if job.resume_at is None else [*flags, f"--resume-session-at={_uuid(job.resume_at)}"]


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise ProviderFailure(
            f"{text!r} is no session of the Claude CLI", reason="session_lost", kind="invalid"
        ) from None


def _schema(job: Job) -> str | None:
    if job.response_schema is None:
        return None
    schema = json.dumps(job.response_schema, separators=(",", ":"))
    if len(schema) >= MAX_ARGUMENT_BYTES - 100:
        message = (
            f"the response_schema has {len(schema)} bytes, and the Claude CLI takes {MAX_ARGUMENT_BYTES}"
        )
        raise ProviderFailure(message, reason="too_large", kind="invalid")
    return schema


def _prompt(job: Job) -> bytes:
    line = json.dumps(
        {"type": "user", "message": {"role": "user", "content": asked(job)}, "client_composed": True}
    ).encode()
    if len(line) > MAX_PROMPT_BYTES:
        message = f"the prompt has {len(line)} bytes, and the Claude CLI reads {MAX_PROMPT_BYTES}"
        raise ProviderFailure(message, reason="too_large", kind="invalid")
    return line + b"\n"
