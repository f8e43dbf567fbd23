"""Timers as rows: what a unit of work does to them, and how they are read."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import FailedPrecondition, InternalError, InvalidArgument, KSIError
from ksi_common.messages import Message, Notification, Request, spec_of
from ksi_common.records import record
from ksi_common.validation import refusal
from ksi_daemon.database import Database, Transaction
from ksi_daemon.dead_letters import DeadLetter
from ksi_daemon.supervisor import attempt

MAX_NAME: Final = 256
"""Characters."""
MAX_DATA: Final = 64 * 1024
"""Bytes of JSON; what is larger belongs into a blob."""

_COLUMNS: Final = "id, name, due, event, data, attempts, correlation_id, causation_id, actor"
_VALUES: Final = "(name, due, event, data, correlation_id, causation_id, actor) VALUES (?, ?, ?, ?, ?, ?, ?)"
_REPLACE: Final = f"REPLACE INTO timers {_VALUES}"
_ADD: Final = f"INSERT INTO timers {_VALUES} ON CONFLICT (name) DO NOTHING"
_CANCEL: Final = "DELETE FROM timers WHERE name = ?"
_REMOVE: Final = "DELETE FROM timers WHERE id = ?"
_POSTPONE: Final = "UPDATE timers SET due = ?, attempts = ? WHERE id = ?"
_NEAREST: Final = (
    f"SELECT {_COLUMNS} FROM timers WHERE event NOT IN (SELECT value FROM json_each(?)) "  # noqa: S608
    "ORDER BY due, id LIMIT ?"
)
_NAMED: Final = (
    f"SELECT {_COLUMNS} FROM timers WHERE name > ? AND name >= ? AND name < ? || char(0x10FFFF) "  # noqa: S608
    "ORDER BY name LIMIT ?"
)


@record
class Timer:
    """A timer as it is stored."""

    id: int
    """Of this setting; the same name set again has another."""
    name: str
    due_us: int
    event: str
    data: bytes
    """JSON."""
    attempts: int
    """How often its request has failed."""
    correlation_id: str | None
    causation_id: str | None
    actor: str | None

    @property
    def cause(self) -> EventEnvelope | None:
        """The event that set it, as the cause of what it fires; None: the daemon set it by itself."""
        if self.correlation_id is None or self.causation_id is None or self.actor is None:
            return None
        # Hops begin anew: they are to stop what runs in circles at full speed, and time has passed.
        return EventEnvelope(self.event, {}, self.causation_id, self.correlation_id, actor=self.actor)

    def request(self, kind: type[Message]) -> Request[Any]:
        """Make its request; raise InvalidArgument where the class has changed and does not take it.

        What else a plugin's class raises is its bug: InternalError.
        """
        request = attempt(lambda: kind.model_validate_json(self.data))
        if isinstance(request, ValidationError):
            data = attempt(lambda: from_json(self.data))
            raise refusal(request, kind, self.event, data if isinstance(data, dict) else {}) from None
        if isinstance(request, BaseException):
            bug = f"{self.event} cannot be made: {type(request).__name__}: {request}"
            raise InternalError(bug) from request
        if not isinstance(request, Request):
            raise InvalidArgument(f"{self.event} is no request any more", reason="not_durable")
        return request


def set_timer(
    tx: Transaction, name: str, due_us: int, message: Request[Any] | Notification, *, replace: bool
) -> bool:
    """Write a timer; False where one of that name stands and ``replace`` is not set."""
    data = _data_of(name, message)
    cause = tx.envelope
    origin = (cause.correlation_id, cause.event_id, cause.actor) if cause else (None, None, None)
    row = (name, due_us, spec_of(type(message)).name, data, *origin)
    return tx.execute(_REPLACE if replace else _ADD, row).rowcount > 0


def cancel(tx: Transaction, name: str) -> bool:
    """Take the timer of that name away, whichever it is; False where there is none."""
    return tx.execute(_CANCEL, (name,)).rowcount > 0


def remove(tx: Transaction, timer: Timer) -> bool:
    """Take this very timer away; False where it was cancelled or set anew meanwhile."""
    return tx.execute(_REMOVE, (timer.id,)).rowcount > 0


def postpone(tx: Transaction, timer: Timer, due_us: int, attempts: int) -> bool:
    """Put this very timer off; False where it was cancelled or set anew meanwhile."""
    return tx.execute(_POSTPONE, (due_us, attempts, timer.id)).rowcount > 0


def letter_of(timer: Timer, error: KSIError, attempts: int) -> DeadLetter:
    """Make the dead letter of a timer that is given up."""
    return DeadLetter(
        kind="message",
        origin="timer",
        name=timer.name,
        event=timer.event,
        data=timer.data.decode(),
        correlation_id=timer.correlation_id,
        causation_id=timer.causation_id,
        actor=timer.actor or "system",
        attempts=attempts,
        reason=error.code,
        message=error.message,
    )


def set_again(tx: Transaction, letter: DeadLetter, due_us: int) -> None:
    """Set the timer of a dead letter; raise FailedPrecondition where one of that name stands.

    And where its data was edited into what no timer holds: the event that tells of its failure could not.
    """
    data = (letter.data or "{}").encode()
    if len(data) > MAX_DATA:
        raise FailedPrecondition(
            f"data of dead letter {letter.id} has {len(data)} bytes; a timer holds {MAX_DATA}",
            reason="too_large",
            id=letter.id,
            limit=MAX_DATA,
        )
    origin = (
        (letter.correlation_id, letter.causation_id, letter.actor) if letter.correlation_id else (None,) * 3
    )
    row = (letter.name, due_us, letter.event, data, *origin)
    if not tx.execute(_ADD, row).rowcount:
        raise FailedPrecondition(f"timer {letter.name!r} is set anew", reason="timer_set", id=letter.id)


async def nearest(database: Database, limit: int, *, without: Iterable[str]) -> Sequence[Timer]:
    """Read the timers that are due first, except those of some events."""
    excepted = to_json(sorted(without)).decode()
    return [Timer(*row) for row in await database.read(_NEAREST, (excepted, limit))]


async def named(database: Database, prefix: str, after: str, limit: int) -> Sequence[Timer]:
    """Read the timers whose name begins with ``prefix``, by name, from beyond ``after``."""
    return [Timer(*row) for row in await database.read(_NAMED, (after, prefix, prefix, limit))]


def _data_of(name: str, message: Message) -> bytes:
    spec = spec_of(type(message))
    if spec.kind == "stream" or spec.ephemeral:
        raise InvalidArgument(
            f"{spec.name} is {'a stream' if spec.kind == 'stream' else 'ephemeral'}: no timer can fire it",
            reason="not_durable",
        )
    if not 1 <= len(name) <= MAX_NAME:
        raise InvalidArgument(f"name of a timer has {len(name)} characters", reason="name", limit=MAX_NAME)
    data = message.__pydantic_serializer__.to_json(message, by_alias=True)
    if len(data) > MAX_DATA:
        raise InvalidArgument(
            f"data of timer {name!r} has {len(data)} bytes",
            hint="put it into a blob and give its reference",
            reason="too_large",
            limit=MAX_DATA,
        )
    return data
