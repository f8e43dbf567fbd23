"""The rows of completions: as they are read, and the statements that write them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from ksi_common.envelope import EventEnvelope
from ksi_common.events.completion import ChatMessage, Failure, Priority, Proof, Role, State, Usage
from ksi_common.events.completion_status import Completion, ProcessState
from ksi_common.records import record
from ksi_completion.circuit_breakers import Candidate
from ksi_completion.queue_manager import Entry
from ksi_completion.responses import LINES, path_of
from ksi_daemon.plugin import Blobs, Reference, Transaction, format_time

TEXT: Final = "text/plain;charset=utf-8"
OPEN: Final = (
    "SELECT number, request_id, session_id, provider, priority, next_try_us, cancel_wanted FROM completions "
    "INDEXED BY completions_open WHERE sha256 IS NULL AND dead_us IS NULL ORDER BY number"
)
"""What is owed an end, as far as the queue must know it."""
OPEN_OF_SESSION: Final = (
    "SELECT * FROM completions INDEXED BY completions_open WHERE session_id = ? AND sha256 IS NULL "
    "ORDER BY number"
)
ONE: Final = "SELECT * FROM completions WHERE request_id = ?"
REFERRED: Final = (
    "SELECT request_id, 'logs/responses/' || session_id || '.jsonl', offset, length, sha256 "
    "FROM completions WHERE sha256 IS NOT NULL UNION ALL "
    "SELECT request_id || '/' || position, blob_path, 0, blob_length, blob_sha256 "
    "FROM completion_messages WHERE blob_path IS NOT NULL"
)
"""What rows refer to: lines of answers, and prompts that are blobs."""

PRIORITIES: Final[Mapping[Priority, int]] = {
    "critical": 2,
    "high": 1,
    "normal": 0,
    "low": -1,
    "background": -2,
}
PRIORITY_NAMES: Final[Mapping[int, Priority]] = {number: name for name, number in PRIORITIES.items()}

_MESSAGES: Final = "SELECT * FROM completion_messages WHERE request_id = ? ORDER BY position"
_INSERT_MESSAGE: Final = "INSERT INTO completion_messages VALUES (?, ?, ?, ?, ?, ?, ?)"


@record
class Row:
    """One completion as its row has it."""

    number: int
    request_id: str
    session_id: str
    state: State
    digest: str
    provider: str
    model: str
    max_tokens: int | None
    timeout_s: float
    agent_id: str | None
    originator_agent_id: str | None
    purpose: str | None
    event_id: str
    correlation_id: str
    actor: str
    hop: int
    accepted_us: int
    started_us: int | None = None
    ended_us: int | None = None
    attempts: int = 0
    failures: int = 0
    cancel_wanted: int = 0
    duration_ms: int | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    failure_reason: str | None = None
    failure_message: str | None = None
    failure_retryable: int | None = None
    proof_how: str | None = None
    proof_elapsed_s: float | None = None
    offset: int | None = None
    length: int | None = None
    sha256: str | None = None
    priority: int = 0
    workflow_id: str | None = None
    has_tools: int = 0
    next_try_us: int | None = None
    worked_ms: int = 0
    last_reason: str | None = None
    last_message: str | None = None
    faults: int = 0
    dead_us: int | None = None
    proof_pids: str | None = None
    provider_changed: int | None = None
    alias: str | None = None

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Take a row of ``SELECT *``."""
        return cls(*row)

    @property
    def entry(self) -> Entry:
        """What the queue keeps of it."""
        return Entry(self.number, self.request_id, self.session_id, self.provider, self.priority)

    @property
    def candidate(self) -> Candidate:
        """Who is asked, or was."""
        return Candidate(self.provider, self.model)

    @property
    def reference(self) -> Reference | None:
        """Where its line of answer is. Raises DataLoss where the row is damaged."""
        if self.sha256 is None or self.length is None:
            return None
        return Reference.stored(path_of(self.session_id), self.offset or 0, self.length, self.sha256, LINES)

    @property
    def usage(self) -> Usage | None:
        """What the answer cost."""
        if self.prompt_tokens is None:
            return None
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens or 0,
            cached_tokens=self.cached_tokens or 0,
        )

    @property
    def failure(self) -> Failure | None:
        """Why it has no answer."""
        if self.failure_reason is None:
            return None
        return Failure(
            reason=self.failure_reason,
            message=self.failure_message or "",
            retryable=bool(self.failure_retryable),
        )

    @property
    def proof(self) -> Proof | None:
        """How it is known that it was cancelled."""
        if self.proof_how is None:
            return None
        pids = [int(pid) for pid in (self.proof_pids or "").split()]
        return Proof.model_validate(
            {"how": self.proof_how, "elapsed_s": self.proof_elapsed_s, "pids_gone": pids}
        )

    @property
    def last_failure(self) -> Failure | None:
        """Why the try before failed."""
        if self.last_reason is None:
            return None
        return Failure(reason=self.last_reason, message=self.last_message or "", retryable=True)

    def process_state(self, *, is_ending: bool = False) -> ProcessState:
        """Say how it is as a process. ``is_ending``: what comes of it is known, and not on disk yet."""
        match self.state:
            case "queued" | "running" if self.dead_us is not None:
                return "dead"
            case "queued":
                return "pending" if self.next_try_us is None else "retry"
            case "running":
                return "success" if is_ending else "running"
            case "completed":
                return "completed"
            case _:
                return "dead" if self.failure_retryable and self.failures else "failed"

    def envelope(self) -> EventEnvelope:
        """Give what the work for it goes on from: the request that asked for it."""
        return EventEnvelope(
            "completion:async", {}, self.event_id, self.correlation_id, actor=self.actor, hop=self.hop
        )

    def completion(
        self, *, position: int | None, response: str | None, is_ending: bool = False
    ) -> Completion:
        """Describe it as ``completion:status`` does."""
        return Completion(
            request_id=self.request_id,
            session_id=self.session_id,
            state=self.state,
            process_state=self.process_state(is_ending=is_ending),
            position=position,
            priority=PRIORITY_NAMES[self.priority],
            provider=self.provider,
            model=self.model,
            attempts=self.attempts,
            failures=self.failures,
            next_try=_time(self.next_try_us),
            last_failure=self.last_failure,
            accepted=format_time(self.accepted_us),
            started=_time(self.started_us),
            ended=_time(self.ended_us),
            duration_ms=self.duration_ms,
            usage=self.usage,
            finish_reason=self.finish_reason,
            reference=self.reference,
            failure=self.failure,
            proof=self.proof,
            provider_changed=None if self.provider_changed is None else bool(self.provider_changed),
            agent_id=self.agent_id,
            workflow_id=self.workflow_id,
            originator_agent_id=self.originator_agent_id,
            purpose=self.purpose,
            response=response,
        )


@record
class StoredMessage:
    """A message of a prompt: its text, or the blob that holds it."""

    role: Role
    text: str | None
    blob: Reference | None

    def insert_in(self, tx: Transaction, request_id: str, position: int) -> None:
        """Write its row."""
        blob = self.blob
        where = (None, None, None) if blob is None else (blob.path, blob.length, blob.sha256)
        tx.execute(_INSERT_MESSAGE, (request_id, position, self.role, self.text, *where))

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Take a row of completion_messages."""
        _, _, role, text, path, length, sha256 = row
        if sha256 is None:
            return cls(role, text, None)
        return cls(role, text, Reference.stored(path, 0, length, sha256, TEXT))

    async def load(self, blobs: Blobs) -> ChatMessage:
        """Give the message; raise DataLoss where its blob is damaged."""
        text = self.text if self.blob is None else (await blobs.read(self.blob)).decode()
        return ChatMessage.model_construct(role=self.role, content=text or "")


def messages_query(request_id: str) -> tuple[str, Sequence[str]]:
    """Give the query for the messages of one prompt, in order."""
    return _MESSAGES, (request_id,)


def _time(time_us: int | None) -> str | None:
    return None if time_us is None else format_time(time_us)
