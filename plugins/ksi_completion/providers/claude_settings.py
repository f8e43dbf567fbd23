"""What can be set of the Claude CLI: the table ``[plugins.completion.providers.claude-cli]``."""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ksi_common.events.completion import ModelName
from ksi_completion.providers.section import Section
from ksi_completion.whole_path import KeyFile, WholePath

TOOL: Final = re.compile(r"[A-Za-z][\w-]*(\([^\n,]*\))?")
"""What names a tool, whole: in a list of them nothing in it can name another."""

ServerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def _tool(name: str) -> str:
    if not TOOL.fullmatch(name):
        raise ValueError(f"{name!r} names no tool: as Read, Bash(git log:*), mcp__server__tool")
    return name


Tool = Annotated[str, AfterValidator(_tool)]


class McpServer(Section):
    """A server of tools: a program (``command``), or a service (``url``)."""

    command: str | None = Field(None, description="A program that speaks MCP on its streams.")
    args: list[str] = Field(default_factory=list[str], description="Its arguments.")
    env: dict[str, str] = Field(default_factory=dict, description="Its environment; ${NAME} is the CLI's.")
    url: str | None = Field(None, description="A service, in place of a program.")
    headers: dict[str, str] = Field(default_factory=dict, description="Of each request to it.")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("give one of command and url")
        return self

    def rendered(self) -> dict[str, Any]:
        """Give it as the CLI reads it."""
        if self.url is not None:
            return {"type": "http", "url": self.url, "headers": self.headers}
        return {"type": "stdio", "command": self.command, "args": self.args, "env": self.env}


class ClaudeCliSettings(Section):
    """How the Claude CLI is run. Seconds and counts."""

    command: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="The program; default: what `ksi install claude` installs, then `claude` of PATH."
    )
    models: list[ModelName] = Field(
        ["sonnet", "opus", "haiku"], min_length=1, description="Models that may be asked for."
    )
    concurrency: int = Field(4, ge=1, le=64, description="Runs at once; each takes about 200 MB.")
    api_key_env: str | None = Field(
        None, description="Variable that has the key; default: the CLI's own, as ANTHROPIC_API_KEY."
    )
    api_key_file: KeyFile | None = Field(None, description="File that has the key, in place of a variable.")
    base_url: str | None = Field(None, description="Another address of the Messages API.")
    pass_env: list[str] = Field(
        default_factory=list[str],
        description="More of the daemon's variables that the CLI, and its tools, get.",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Variables for it, nothing secret.")
    config_dir: WholePath | None = Field(
        None,
        description="Where it keeps sessions and a login; default: state/claude-cli/config in $KSI_HOME.",
    )
    work_dir: WholePath | None = Field(
        None, description="Where its tools work; default: state/claude-cli/work in $KSI_HOME."
    )
    system: str = Field(
        "You are a helpful assistant.",
        min_length=1,
        description="What it is told before a conversation, where a request does not say it.",
    )
    own_system: bool = Field(
        default=False,
        description="Keep the CLI's long system prompt, some 12,000 tokens, and add to it.",
    )
    tools: list[Tool] = Field(
        default_factory=list[Tool],
        description="Tools that it may use without asking: Read, Bash(git log:*), mcp__server, "
        "mcp__server__tool. A request's allowed_tools chooses among these.",
    )
    permission_mode: (
        Literal["acceptEdits", "auto", "bypassPermissions", "dontAsk", "manual", "plan"] | None
    ) = Field(None, description="The CLI's own mode of permissions.")
    mcp_servers: dict[ServerName, McpServer] = Field(
        default_factory=dict,
        description="Servers of tools, by name; one runs where a tool of it may be used.",
    )
    max_budget_usd: float | None = Field(
        None, gt=0, description="Of one run; the CLI stops when it is spent."
    )
    api_timeout_s: float = Field(
        300.0, gt=0, le=3600, description="Of one request of the CLI to its service."
    )
