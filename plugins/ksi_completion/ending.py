"""How a completion ends: a line of its session's file, then its last row and its last word in one commit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

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
from ksi_completion.response_cache import is_cached
from ksi_completion.responses import Line, Responses, Written
from ksi_completion.rows import Row
from ksi_completion.session_manager import Session, SessionManager
from ksi_completion.storing import Storing
from ksi_completion.structured import FIELD
from ksi_completion.token_tracker import CallOutcome, TokenTracker
from ksi_daemon.plugin import (
    Database,
    InvalidArgument,
    JsonValue,
    Lease,
    Notification,
    Reference,
    Transaction,
    format_time,
)

STATES: Final[dict[str, State]] = {"result": "completed", "failed": "failed", "cancelled": "cancelled"}

MAX_TEXT: Final = 1024 * 1024
"""Bytes of JSON of an answer that a frame takes beside all else; a longer one is read by its reference."""
_SHORT: Final = MAX_TEXT // 6
"""Characters that are never more than that."""

_END: Final = (
    "UPDATE completions SET state = ?, ended_us = ?, attempts = ?, failures = ?, next_try_us = NULL, "
    "dead_us = NULL, duration_ms = ?, finish_reason = ?, prompt_tokens = ?, completion_tokens = ?, "
    "cached_tokens = ?, failure_reason = ?, failure_message = ?, failure_retryable = ?, proof_how = ?, "
    "proof_elapsed_s = ?, proof_pids = ?, provider_changed = ?, offset = ?, length = ?, sha256 = ? "
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
        storing: Storing,
    ) -> None:
        self._database = database
        self._clock = clock
        self._responses = responses
        self._sessions = sessions
        self._tokens = tokens
        self._storing = storing

    async def end(self, row: Row, outcome: Outcome) -> Step:
        """Write the answer, or why there is none, and tell it; give the last step.

        A store that takes nothing, or not yet, is waited for: what was accepted is owed an end. Raises
        LeaseLost where another works on the session by now: then nothing of this is to be kept.
        """
        try:
            return await self._end(row, outcome)
        except InvalidArgument as error:
            return await self._end(row, _unstorable(outcome, error))

    async def last_step(self, row: Row) -> Step:
        """Give the last step of a completion that has ended; raise DataLoss."""
        assert row.reference is not None
        line = await self._responses.read(row.reference)
        changed = None if row.provider_changed is None else bool(row.provider_changed)
        return step_of(row, line, row.reference, provider_changed=changed)

    async def _end(self, row: Row, outcome: Outcome) -> Step:
        line = self._line(row, outcome)

        async def store() -> Step:
            async with self._sessions.writing(row.session_id):
                session = await self._sessions.find(row.session_id)
                written = await self._responses.store(row.session_id, line, at=session.file_end)
                return await self.commit(row, line, written, outcome.lease)

        return await self._storing.stored(store, request_id=row.request_id, session_id=row.session_id)

    async def commit(self, row: Row, line: Line, written: Written, lease: Lease | None = None) -> Step:
        """Make a line that stands in the file the end of its completion; under the session's lock.

        ``lease``: the right to the session, which is given back.
        """
        before = await self._sessions.find(row.session_id)
        changed = before.changes_with(line.provider, line.model) if line.outcome == "result" else None
        session = _after(before, line, written)
        step = step_of(row, line, written.reference, provider_changed=changed)
        told = _told(row, line, step)

        def end(tx: Transaction) -> None:
            tx.before_commit(written.reference.path, written.sync)
            now = self._clock.time_us()
            failures = row.failures if line.failures is None else line.failures
            if not tx.execute(_END, _columns(row, line, step, failures=failures, time_us=now)).rowcount:
                raise AssertionError(f"completion {row.request_id} has ended before")
            self._sessions.answered_in(tx, row.session_id, session, time_us=now)
            usage = step.usage or line.usage
            if usage is not None and not is_cached(line.response):
                how: CallOutcome = "answered" if line.outcome == "result" else "failed"
                self._tokens.account_in(tx, row, usage, attempt=line.attempt, time_us=now, outcome=how)
            if lease is not None:
                self._sessions.give_back_in(tx, lease)
            tx.tell(told, stream=f"completion/{row.request_id}")

        await self._database.write(end)
        return step

    def _line(self, row: Row, outcome: Outcome) -> Line:
        answer = outcome.answer
        return Line(
            request_id=row.request_id,
            session_id=row.session_id,
            provider=row.provider,
            model=row.model,
            timestamp=format_time(self._clock.time_us()),
            duration_ms=outcome.duration_ms,
            attempt=outcome.attempt,
            failures=outcome.failures,
            outcome=outcome.name,
            response=answer.response if answer else None,
            error=outcome.failure,
            proof=outcome.proof,
            usage=outcome.usage,
            client_id=row.agent_id,
            provider_session=answer.provider_session if answer else None,
            resume_at=answer.resume_at if answer else None,
        )


def _after(session: Session, line: Line, written: Written) -> Session:
    """Give what a session goes on from after a line; what did not come to an answer changes nothing else."""
    if line.outcome != "result":
        return replace(session, file_end=written.end)
    return replace(
        session,
        file_end=written.end,
        provider=line.provider,
        model=line.model,
        provider_session=line.provider_session,
        resume_at=line.resume_at,
    )


def _columns(row: Row, line: Line, step: Step, *, failures: int, time_us: int) -> Sequence[Any]:
    """Give what ``_END`` writes, in its order."""
    usage, failure, proof, reference = step.usage, step.failure, step.proof, step.reference
    assert reference is not None
    return (
        STATES[line.outcome],
        time_us,
        line.attempt,
        failures,
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
        proof and " ".join(map(str, proof.pids_gone)),
        step.provider_changed,
        reference.offset,
        reference.length,
        reference.sha256,
        row.request_id,
    )


def _unstorable(outcome: Outcome, error: InvalidArgument) -> Outcome:
    """Give the end of a completion whose answer no file takes."""
    failure = Failure(reason="answer_" + str(error.details["reason"]), message=error.message)
    usage = outcome.answer.usage if outcome.answer else outcome.usage
    return replace(outcome, answer=None, proof=None, failure=failure, usage=usage)


def step_of(row: Row, line: Line, reference: Reference, *, provider_changed: bool | None) -> Step:
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
        "provider_changed": provider_changed,
    }
    if line.outcome == "result":
        response = line.response or {}
        usage = response.get("usage")
        last["text"] = line.text if _fits(line.text) else None
        last["finish_reason"] = str(response.get("finish_reason") or "stop")
        last["usage"] = usage if isinstance(usage, dict) and not is_cached(response) else {}
        last["cached"] = is_cached(response)
        if _fits_in_json(response.get(FIELD)):
            last["structured"] = response.get(FIELD)
    return Step.model_validate(last)


def _fits_in_json(value: JsonValue) -> bool:
    return value is None or len(orjson.dumps(value)) <= MAX_TEXT // 2


def _fits(text: str) -> bool:
    return len(text) <= _SHORT or len(orjson.dumps(text)) <= MAX_TEXT


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
            answer: dict[str, Any] = {"finish_reason": step.finish_reason, "usage": step.usage}
            answer |= {"duration_ms": line.duration_ms, "provider_changed": step.provider_changed}
            answer |= {"cached": step.cached, "structured": step.structured}
            return CompletionResult.model_validate(common | answer)
        case "failed":
            return CompletionFailed.model_validate(common | {"failure": step.failure})
        case _:
            return CompletionCancelled.model_validate(common | {"proof": step.proof})
