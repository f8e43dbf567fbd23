"""Completions and child processes as rows of one form: who works for whom, how it is, what it used."""

from collections.abc import Sequence
from typing import Any, Final

from ksi_common.events.process import GetProcess, ListProcesses, Processes, ProcessRow
from ksi_completion.rows import Row, StoredMessage
from ksi_daemon.plugin import Database, NotFound, format_time

PROMPT_CHARACTERS: Final = 200

_STATE: Final = """CASE
    WHEN state IN ('queued', 'running') AND dead_us IS NOT NULL THEN 'dead'
    WHEN state = 'queued' THEN iif(next_try_us IS NULL, 'pending', 'retry')
    WHEN state IN ('running', 'completed') THEN state
    ELSE iif(failure_retryable AND failures, 'dead', 'failed') END"""
"""As ``Row.process_state`` has it, of what is on disk."""
_CHOSEN: Final = f"""FROM completions WHERE (:status IS NULL OR {_STATE} = :status)
    AND (:session_id IS NULL OR session_id = :session_id) AND (:agent_id IS NULL OR agent_id = :agent_id)
    AND (:workflow_id IS NULL OR workflow_id = :workflow_id)"""
_PAGE: Final = f"SELECT * {_CHOSEN} ORDER BY number DESC LIMIT :limit OFFSET :offset"
_COUNT: Final = f"SELECT count(*) {_CHOSEN}"
_ONE: Final = "SELECT * FROM completions WHERE request_id = ?"
_LAST_MESSAGE: Final = "SELECT * FROM completion_messages WHERE request_id = ? ORDER BY position DESC LIMIT 1"
_USED: Final = (
    "SELECT sum(prompt_tokens + completion_tokens), sum(cost_usd) FROM token_usage WHERE request_id = ?"
)
_CHILDREN: Final = (
    "SELECT * FROM processes WHERE :status IS NULL OR status = :status "
    "ORDER BY number DESC LIMIT :limit OFFSET :offset"
)
_COUNT_CHILDREN: Final = "SELECT count(*) FROM processes WHERE :status IS NULL OR status = :status"
_CHILD: Final = "SELECT * FROM processes WHERE number = ?"


class ProcessRegistry:
    """Read the rows. ``attempts``: tries that a completion has, as set."""

    def __init__(self, database: Database, *, attempts: int) -> None:
        self._database = database
        self._attempts = attempts

    async def list(self, asked: ListProcesses) -> Processes:
        """List processes of a kind, the latest first."""
        chosen = asked.model_dump(exclude={"kind"})
        if asked.kind == "child":
            of_somebody = (asked.session_id, asked.agent_id, asked.workflow_id) != (None, None, None)
            rows = [] if of_somebody else await self._database.read(_CHILDREN, chosen)
            found = [_child(row) for row in rows]
            count = _COUNT_CHILDREN
        else:
            rows = await self._database.read(_PAGE, chosen)
            found = [await self._completion(Row.of(row)) for row in rows]
            of_somebody, count = False, _COUNT
        total = 0 if of_somebody else (await self._database.read(count, chosen))[0][0]
        return Processes(processes=found, total=total, offset=asked.offset, limit=asked.limit)

    async def get(self, asked: GetProcess) -> ProcessRow:
        """Describe one process; raise NotFound."""
        kind, _, name = asked.process_id.partition("/")
        rows = await self._database.read(_CHILD if kind == "child" else _ONE, (name,))
        if not rows:
            raise NotFound(f"there is no process {asked.process_id}", reason="unknown_process")
        return _child(rows[0]) if kind == "child" else await self._completion(Row.of(rows[0]))

    async def _completion(self, row: Row) -> ProcessRow:
        (stored,) = await self._database.read(_LAST_MESSAGE, (row.request_id,))
        ((tokens, cost_usd),) = await self._database.read(_USED, (row.request_id,))
        message = StoredMessage.of(stored)
        error = row.failure or (row.last_failure if row.state in {"queued", "running"} else None)
        return ProcessRow(
            process_id=f"completion/{row.request_id}",
            kind="completion",
            status=row.process_state(),
            purpose=row.purpose,
            request_id=row.request_id,
            session_id=row.session_id,
            workflow_id=row.workflow_id,
            agent_id=row.agent_id,
            provider=row.provider,
            model=row.model,
            prompt=None if message.text is None else message.text[:PROMPT_CHARACTERS],
            prompt_reference=message.blob,
            response_reference=row.reference,
            retry_count=max(0, row.attempts - 1),
            max_retries=self._attempts - 1,
            error=error and error.message,
            accepted=format_time(row.accepted_us),
            started=_time(row.started_us),
            ended=_time(row.ended_us),
            tokens=tokens,
            cost_usd=cost_usd,
            duration_ms=row.duration_ms,
        )


def _child(row: Sequence[Any]) -> ProcessRow:
    number, pid, pid_started, boot_id, purpose, status, started_us, ended_us, code, signal, gone = row
    return ProcessRow(
        process_id=f"child/{number}",
        kind="child",
        status=status,
        purpose=purpose,
        pid=pid,
        pid_started=pid_started,
        boot_id=boot_id,
        exit_code=code,
        exit_signal=signal,
        pids_gone=None if gone is None else [int(one) for one in gone.split()],
        started=format_time(started_us),
        ended=_time(ended_us),
        duration_ms=None if ended_us is None else (ended_us - started_us) // 1000,
    )


def _time(time_us: int | None) -> str | None:
    return None if time_us is None else format_time(time_us)
