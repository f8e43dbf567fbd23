"""Idempotency keys: who asks again, under the same key, gets the same answer, and the effect is there once.

The key's row commits with the unit of work of its request, and so does the answer where the unit gives it.
A request that wrote nothing leaves no key where it is refused, and a key with its answer otherwise.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from hashlib import sha256
from typing import Any, Final

import orjson
import structlog

from ksi_common.clock import Clock
from ksi_common.envelope import EventEnvelope
from ksi_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    KSIError,
    OperationalError,
    ResourceExhausted,
    error_from_wire,
)
from ksi_daemon.database import Database
from ksi_daemon.keys import rows
from ksi_daemon.keys.execution import Execution
from ksi_daemon.keys.rows import KeyName, KeyRow
from ksi_daemon.middleware.errors import ReportedError, hint_at, named
from ksi_daemon.outcomes import Endpoint, Failed, Outcome, Replied, Send

log = structlog.get_logger()

MAX_KEY: Final = 128
"""Characters."""
MAX_RUNNING: Final = 10_000
"""Keys whose requests run."""


class Idempotency:
    """Execute each key once. What has no key passes, at the cost of asking."""

    def __init__(self, database: Database, clock: Clock, *, max_running: int = MAX_RUNNING) -> None:
        self._database = database
        self._clock = clock
        self._max_running = max_running
        self._running: dict[KeyName, Execution] = {}

    def __call__(self, envelope: EventEnvelope, send: Send, call_next: Endpoint) -> Awaitable[None]:
        """Pass on what has no key, and what changes nothing."""
        if envelope.idempotency_key is None or (envelope.spec is not None and envelope.spec.safe):
            return call_next(envelope, send)
        return self._answer(envelope, send, call_next)

    async def _answer(self, envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        name = _name(envelope)
        digest = sha256(orjson.dumps(envelope.data, option=orjson.OPT_SORT_KEYS)).digest()
        while True:
            running = self._running.get(name)
            if running is not None:
                _check_same(name, digest, running.digest)
                outcome = await asyncio.shield(running.ended)
            else:
                # Read on the loop: nothing may wait before a handler, or requests would change their order.
                row = rows.find(self._database, name)
                outcome = None if row is None else _stored(row, name, digest, envelope)
                if outcome is None:
                    again = row is not None
                    execution = Execution(name, digest, envelope, self._database, self._clock, again=again)
                    if await self._execute(execution, envelope, send, call_next):
                        return
            if outcome is not None:
                await _give(outcome, send)
                return

    async def _execute(
        self, execution: Execution, envelope: EventEnvelope, send: Send, call_next: Endpoint
    ) -> bool:
        """Run the handler and answer; False where another's unit was first, and this one did nothing."""
        if len(self._running) >= self._max_running:
            raise ResourceExhausted(
                f"{self._max_running} idempotency keys are at work", reason="keys_running", retry_after_s=1
            )
        self._running[execution.name] = execution
        envelope.joins = execution
        envelope.recorded = False
        try:
            await call_next(envelope, lambda outcome: execution.take(outcome, send))
        except asyncio.CancelledError:
            execution.outcome = None  # that was for this caller; who else waits tries for himself
            raise
        except BaseException as error:
            if not execution.taken:
                execution.outcome = Failed(_reported(error, envelope))
                raise
        finally:
            envelope.joins = None
            self._end(execution)
        return not execution.taken

    def _end(self, execution: Execution) -> None:
        """Tell those who wait. Whoever comes before the answer is on disk is told from here, too."""
        execution.ended.set_result(execution.outcome)
        unit = execution.answer_to_keep
        try:
            kept = None if unit is None else self._database.write_apart(unit)
        except OperationalError as error:
            self._let_go(execution, error)
            return
        if kept is None:
            self._let_go(execution, None)
        else:
            kept.add_done_callback(lambda future: self._let_go(execution, future.exception()))

    def _let_go(self, execution: Execution, error: BaseException | None) -> None:
        del self._running[execution.name]
        if error is not None:
            log.warning("key.answer_not_kept", handled=execution.name.event, error=str(error))


def _name(envelope: EventEnvelope) -> KeyName:
    key = envelope.idempotency_key or ""
    if envelope.spec is not None and envelope.spec.kind == "stream":
        raise InvalidArgument(
            f"{envelope.event} is a stream: it takes no idempotency key",
            reason="key_on_stream",
            hint="leave the key out; a stream is not given again",
        )
    if not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise InvalidArgument(
            f"an idempotency key has 1 to {MAX_KEY} printable ASCII characters",
            reason="bad_key",
            limit=MAX_KEY,
        )
    return KeyName(key, envelope.event, envelope.actor)


def _check_same(name: KeyName, digest: bytes, known: bytes) -> None:
    if digest != known:
        raise AlreadyExists(
            f"{name.event} was asked for something else under key {name.key!r}",
            reason="other_body",
            hint="a new request needs a new key",
        )


def _stored(row: KeyRow, name: KeyName, digest: bytes, envelope: EventEnvelope) -> Outcome | None:
    """Give the answer on disk; None where that is not known, and the handler may do it once more."""
    _check_same(name, digest, row.digest)
    if row.reply is not None:
        return Replied(orjson.loads(row.reply))
    if row.error is not None:
        return Failed(_from_wire(orjson.loads(row.error)))
    if envelope.spec is not None and envelope.spec.idempotent:
        return None
    raise FailedPrecondition(
        f"{envelope.event} was done under this key, but its answer is lost",
        reason="outcome_unknown",
        event_id=row.event_id,
        hint="look what it changed; under another key it would be done twice",
    )


def _from_wire(wire: Mapping[str, Any]) -> KSIError:
    error = error_from_wire(wire)
    if isinstance(error, OperationalError):
        return error
    return ReportedError(error.message, hint=error.hint, **error.details)


async def _give(outcome: Outcome, send: Send) -> None:
    if isinstance(outcome, Failed):
        raise outcome.error.with_traceback(None)
    await send(outcome)


def _reported(error: BaseException, envelope: EventEnvelope) -> KSIError:
    """Give what others are told of an error; what is a bug is in the log once."""
    if isinstance(error, OperationalError | ReportedError):
        return error
    return ReportedError(
        f"{envelope.event} failed under this key: {named(error)}",
        hint=hint_at(error),
    )
