"""``process:*``: completions and the daemon's child processes as processes, with what they used."""

from typing import Annotated, Literal

from pydantic import Field

from ksi_common.errors import NotFound
from ksi_common.events.completion_status import ProcessState
from ksi_common.events.types import Name
from ksi_common.messages import Message, Request
from ksi_common.references import Reference

Kind = Literal["completion", "child"]
ProcessId = Annotated[
    str, Field(pattern=r"^(completion/[A-Za-z0-9][A-Za-z0-9._-]*|child/[0-9]+)$", max_length=160)
]


class ProcessRow(Message):
    """One process. Times are RFC 3339; what the kind has not is None."""

    process_id: str
    """completion/REQUEST_ID or child/NUMBER."""
    kind: Kind
    status: ProcessState
    purpose: str | None
    pid: int | None = None
    """Of a child; with ``pid_started`` and ``boot_id`` of one process only, ever."""
    pid_started: int | None = None
    """In clock ticks since the boot."""
    boot_id: str | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    pids_gone: list[int] | None = None
    """What was killed with a child, or was found of a dead one at the next start."""
    request_id: str | None = None
    session_id: str | None = None
    workflow_id: str | None = None
    agent_id: str | None = None
    provider: str | None = None
    model: str | None = None
    prompt: str | None = None
    """How the last message of the prompt begins."""
    prompt_reference: Reference | None = None
    """Where it is, if it is long."""
    response_reference: Reference | None = None
    retry_count: int | None = None
    max_retries: int | None = None
    error: str | None = None
    accepted: str | None = None
    started: str | None = None
    ended: str | None = None
    tokens: int | None = None
    """Of all calls."""
    cost_usd: float | None = None
    duration_ms: int | None = None


class Processes(Message):
    """A page of processes, the latest first; ``total``: of the kind, with these fields."""

    processes: list[ProcessRow]
    total: int
    offset: int
    limit: int


class ListProcesses(Request[Processes], event="process:list", safe=True):
    """List completions, or the daemon's child processes."""

    kind: Kind = Field("completion", description="Completions, or child processes.")
    status: ProcessState | None = Field(None, description="Only those that are so.")
    session_id: Name | None = Field(None, description="Of this session.")
    agent_id: Name | None = Field(None, description="Of this agent.")
    workflow_id: Name | None = Field(None, description="Of this workflow.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(100, description="Processes at most.")
    offset: Annotated[int, Field(ge=0)] = Field(0, description="How many to pass over.")


class GetProcess(Request[ProcessRow], event="process:get", safe=True, raises=(NotFound,)):
    """Tell of one completion or child process."""

    process_id: ProcessId = Field(description="Which one.", examples=["completion/no-such-request"])
