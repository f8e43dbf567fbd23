"""How a completion ends: a line of its session's file, then its last row and its last word in one commit."""

from typing import Any, Final

from ksi_common.clock import Clock
from ksi_common.events.completion import (
    CompletionCancelled,
    CompletionFailed,
    CompletionResult,
    Failure,
    State,
    Step,
)
from ksi_completion.outcomes import Outcome
from ksi_completion.responses import Line, Responses, Written
from ksi_completion.rows import Row
from ksi_completion.session_manager import SessionManager
from ksi_completion.storing import stored
from ksi_completion.token_tracker import TokenTracker
from ksi_daemon.plugin import (
    Database,
    InvalidArgument,
    Notification,
    Reference,
    Transaction,
    format_time,
)

STATES: Final[dict[str, State]] = {"result": "completed", "failed": "failed", "cancelled": "cancelled"}

_END: Final = (
    "UPDATE completions SET state = ?, ended_us = ?, attempts = ?, duration_ms = ?, finish_reason = ?, "
    "prompt_tokens = ?, completion_tokens = ?, cached_tokens = ?, failure_reason = ?, failure_message = ?, "
    "failure_retryable = ?, proof_how = ?, proof_elapsed_s = ?, offset = ?, length = ?, sha256 = ? "
    "WHERE request_id = ? AND sha256 IS NULL"
)


class Ending:
    """End completions, each once."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        responses: Responses,
        sessions: SessionManager,
        tokens: TokenTracker,
    ) -> None:
        self._database = database
        self._clock = clock
        self._responses = responses
        self._sessions = sessions
        self._tokens = tokens

    async def end(self, row: Row, outcome: Outcome) -> Step:
        """Write the answer, or why there is none, and tell it; give the last step.

        A store that takes nothing, or not yet, is waited for: what was accepted is owed an end.
        """
        try:
            return await self._end(row, outcome)
        except InvalidArgument as error:
            return await self._end(row, _unstorable(outcome, error))

    async def _end(self, row: Row, outcome: Outcome) -> Step:
        line = self._line(row, outcome)

        async def store() -> Step:
            async with self._sessions.writing(row.session_id):
                at = await self._sessions.file_end(row.session_id)
                written = await self._responses.append(row.session_id, line, at=at)
                return await self.commit(row, line, written)

        return await stored(store, request_id=row.request_id)

    async def commit(self, row: Row, line: Line, written: Written) -> Step:
        """Make a line that stands in the file the end of its completion; under the session's lock."""
        step = step_of(row, line, written.reference)
        told = _told(row, line, step)
        reference = written.reference

        def end(tx: Transaction) -> None:
            tx.before_commit(reference.path, written.sync)
            now = self._clock.time_us()
            usage, failure, proof = step.usage, step.failure, step.proof
            changed = tx.execute(
                _END,
                (
                    STATES[line.outcome],
                    now,
                    line.attempt,
                    line.duration_ms,
                    step.finish_reason,
                    usage and usage.prompt_tokens,
                    usage and usage.completion_tokens,
                    usage and usage.cached_tokens,
                    failure and failure.reason,
                    failure and failure.message,
                    failure and failure.retryable,
                    proof and proof.how,
                    proof and proof.elapsed_s,
                    reference.offset,
                    reference.length,
                    reference.sha256,
                    row.request_id,
                ),
            ).rowcount
            if not changed:
                raise AssertionError(f"completion {row.request_id} has ended before")
            self._sessions.answered_in(tx, row.session_id, file_end=written.end, time_us=now)
            if usage is not None:
                self._tokens.account_in(tx, row, usage, attempt=line.attempt, time_us=now)
            tx.tell(told, stream=f"completion/{row.request_id}")

        await self._database.write(end)
        return step

    def _line(self, row: Row, outcome: Outcome) -> Line:
        return Line(
            request_id=row.request_id,
            session_id=row.session_id,
            provider=row.provider,
            model=row.model,
            timestamp=format_time(self._clock.time_us()),
            duration_ms=outcome.duration_ms,
            attempt=outcome.attempt,
            outcome=outcome.name,
            response=outcome.answer.response if outcome.answer else None,
            error=outcome.failure,
            proof=outcome.proof,
            client_id=row.agent_id,
        )


def _unstorable(outcome: Outcome, error: InvalidArgument) -> Outcome:
    """Give the end of a completion whose answer no file takes."""
    failure = Failure(reason="answer_" + str(error.details["reason"]), message=error.message)
    return Outcome(outcome.attempt, outcome.duration_ms, failure=failure)


def step_of(row: Row, line: Line, reference: Reference) -> Step:
    """Make the last step of a completion from the line that ended it."""
    last: dict[str, Any] = {
        "type": line.outcome,
        "request_id": row.request_id,
        "session_id": row.session_id,
        "provider": line.provider,
        "model": line.model or row.model,
        "attempt": line.attempt,
        "duration_ms": line.duration_ms,
        "reference": reference,
        "failure": line.error,
        "proof": line.proof,
    }
    if line.outcome == "result":
        response = line.response or {}
        usage = response.get("usage")
        last["text"] = line.text
        last["finish_reason"] = str(response.get("finish_reason") or "stop")
        last["usage"] = usage if isinstance(usage, dict) else {}
    return Step.model_validate(last)


def _told(row: Row, line: Line, step: Step) -> Notification:
    common: dict[str, Any] = {
        "request_id": row.request_id,
        "session_id": row.session_id,
        "provider": step.provider,
        "model": step.model,
        "attempt": line.attempt,
        "reference": step.reference,
        "agent_id": row.agent_id,
    }
    match line.outcome:
        case "result":
            answer = {"finish_reason": step.finish_reason, "usage": step.usage}
            return CompletionResult.model_validate(common | answer | {"duration_ms": line.duration_ms})
        case "failed":
            return CompletionFailed.model_validate(common | {"failure": step.failure})
        case _:
            return CompletionCancelled.model_validate(common | {"proof": step.proof})
