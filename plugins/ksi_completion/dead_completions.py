"""Completions that a bug of ours keeps from ending: counted, set aside for a person, and taken up again."""

from collections.abc import Callable
from typing import Final

import structlog

from ksi_common.clock import Clock
from ksi_common.events.completion import Usage
from ksi_completion.rows import ONE, Row
from ksi_completion.token_tracker import TokenTracker
from ksi_daemon.plugin import (
    Database,
    DeadLetter,
    DeadLetters,
    FailedPrecondition,
    Lease,
    Leases,
    Transaction,
)

log = structlog.get_logger()

ORIGIN: Final = "completion"
MAX_FAULTS: Final = 3
"""Bugs that a completion may meet before it is failed, and, where that meets one too, set aside."""

_SET_ASIDE: Final = (
    "UPDATE completions SET state = 'queued', dead_us = ?, next_try_us = NULL WHERE request_id = ? "
    "AND sha256 IS NULL"
)
_TAKE_UP: Final = (
    "UPDATE completions SET dead_us = NULL, faults = 0 WHERE request_id = ? AND dead_us IS NOT NULL"
)
_DEAD: Final = "SELECT request_id FROM completions WHERE dead_us IS NOT NULL AND sha256 IS NULL"


class SetAside(FailedPrecondition):
    """A completion has met a bug each time, and waits for a person."""


class DeadCompletions:
    """Keep them. ``take_up`` is called with the row of one that is tried again."""

    def __init__(
        self,
        database: Database,
        letters: DeadLetters,
        leases: Leases,
        clock: Clock,
        tokens: TokenTracker,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._leases = leases
        self._letters = letters
        self._clock = clock
        self.names: dict[str, None] = {}
        """The requests, in order."""

    async def load(self, take_up: Callable[[Row], None]) -> None:
        """Learn of those that there are, and offer to try them again."""
        self.names = dict.fromkeys(row[0] for row in await self._database.read(_DEAD))

        def redrive(tx: Transaction, letter: DeadLetter) -> None:
            if not tx.execute(_TAKE_UP, (letter.name,)).rowcount:
                raise FailedPrecondition(f"completion {letter.name} is not set aside", reason="not_dead")
            row = Row.of(tx.execute(ONE, (letter.name,)).fetchone())
            tx.on_commit(lambda: self._note_taken(row, take_up))

        self._letters.offer(ORIGIN, redrive)

    async def set_aside(
        self, row: Row, error: Exception, lease: Lease | None, usage: Usage | None
    ) -> SetAside:
        """Make a dead letter of a completion; give what those who follow it are told.

        Its session goes on: ``lease``, the right to it, is given back. ``usage``: of its last attempt.
        """
        self.names[row.request_id] = None
        message = f"{type(error).__name__}: {error}"[:500]
        log.error("completion.set_aside", request_id=row.request_id, error=message)
        letter = DeadLetter(
            kind="job",
            origin=ORIGIN,
            name=row.request_id,
            event="completion:async",
            event_id=row.event_id,
            correlation_id=row.correlation_id,
            actor=row.actor,
            time_us=row.accepted_us,
            attempts=row.faults,
            reason="bug",
            message=message,
        )

        def unit(tx: Transaction) -> None:
            now = self._clock.time_us()
            if tx.execute(_SET_ASIDE, (now, row.request_id)).rowcount:
                self._letters.add_in(tx, letter)
            if usage is not None:
                self._tokens.account_in(tx, row, usage, attempt=row.attempts, time_us=now, outcome="failed")
            if lease is not None:
                self._leases.release_in(tx, lease)

        await self._database.write_apart(unit)
        return SetAside(
            f"completion {row.request_id} met a bug {row.faults} times and is set aside",
            reason="completion_dead",
            hint="deadletter:list has it; deadletter:redrive tries it again, completion:cancel ends it",
        )

    def _note_taken(self, row: Row, take_up: Callable[[Row], None]) -> None:
        self.names.pop(row.request_id, None)
        take_up(row)
