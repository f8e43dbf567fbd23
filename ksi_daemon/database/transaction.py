"""What a unit of work may do: run SQL, tell events, and leave word for before and after the commit."""

import re
import sqlite3
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

from ksi_common.envelope import EventEnvelope, StoredEvent
from ksi_common.errors import FailedPrecondition, InvalidArgument
from ksi_common.ids import new_id
from ksi_common.messages import Notification, Rendered, spec_of
from ksi_daemon.database.claims import store_blob
from ksi_daemon.database.log_writer import CLAIM_CHECKED, ExpectedVersion, LogWriter
from ksi_daemon.event_versions import stamped

MAX_EVENT_DATA: Final = 1024 * 1024 - 4096
"""Bytes of one event's data."""
MAX_HOPS: Final = 32
_CONTROLS: Final = frozenset(("BEGI", "COMM", "END", "END;", "ROLL"))
"""How statements begin that begin or end a transaction: that is the writer's to do."""
_TO_A_SAVEPOINT: Final = re.compile(r"ROLLBACK\s+(TRANSACTION\s+)?TO\s", re.IGNORECASE)
_COUNTED: Final = frozenset(("SELE", "INSE", "UPDA", "DELE", "REPL", "WITH", "SAVE", "RELE", "ROLL"))
"""How statements begin whose changes ``total_changes`` counts, or that change nothing.

An INSERT that is ignored may have drawn a number of an AUTOINCREMENT table: that is a gap, and no more.
"""
_SAVEPOINTS: Final = frozenset(("SAVE", "RELE", "ROLL"))
_COMMENTS: Final = re.compile(r"(\s|--[^\n]*(\n|$)|/\*.*?\*/|;)+", re.DOTALL)
"""What may stand before a statement."""


R = TypeVar("R")


class Transaction:
    """One unit's view of the transaction of its group. Valid only while the unit runs."""

    __slots__ = (
        "_apart",
        "_connection",
        "_correlation",
        "_cursors",
        "_envelope",
        "_log",
        "_now_us",
        "_ran",
        "after_commit",
        "conditions",
        "told",
        "uncounted",
    )

    def __init__(
        self,
        connection: sqlite3.Connection,
        log: LogWriter,
        now_us: int,
        envelope: EventEnvelope | None,
        *,
        apart: bool,
    ) -> None:
        """``apart``: with a savepoint of its own, so that what it did can be undone and nothing else."""
        self._apart = apart
        self._connection = connection
        self._log = log
        self._now_us = now_us
        self._envelope = envelope
        self._correlation = ""
        self._cursors: list[sqlite3.Cursor] = []
        """Of statements that give rows."""
        self.told: list[StoredEvent] = []
        """What the unit told and the log did not have."""
        self.after_commit: list[Callable[[], None]] = []
        """What the unit left to do."""
        self.conditions: dict[Hashable, Callable[[], None]] | None = None
        """What must be done before the unit may commit; few units have any."""
        self._ran = False
        """It ran SQL."""
        self.uncounted = False
        """It ran what may change the database and is not counted."""

    @property
    def envelope(self) -> EventEnvelope | None:
        """The event that the unit works for, as it was when ``write`` was called; threads have none."""
        return self._envelope

    def execute(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        """Run one statement.

        Raises FailedPrecondition for COMMIT and the like: what a unit does is committed when it has ended.
        """
        begins = sql if sql[:1].isalpha() else _COMMENTS.sub("", sql, count=1)
        word = begins[:4].rstrip().upper()
        if word in _CONTROLS and not _TO_A_SAVEPOINT.match(begins):
            raise FailedPrecondition(
                f"a unit of work may not run {begins.split()[0]}: it is committed as a whole when it ends",
                reason="transaction_control",
            )
        self.check_alive()
        if word not in _COUNTED:
            self.uncounted = True
        if word in _SAVEPOINTS and not self._apart:
            # Around those of the unit: one that it leaves open must not outlive it.
            self._apart = True
            self._connection.execute("SAVEPOINT unit")
        elif self._apart and not self._ran:
            self._connection.execute("SAVEPOINT unit")
        self._ran = True
        cursor = self._connection.execute(sql, parameters)
        if cursor.description is not None:
            self._cursors.append(cursor)
        return cursor

    def check_alive(self) -> None:
        """Raise FailedPrecondition where SQLite took the transaction back."""
        if not self._connection.in_transaction:
            # The unit hid the error that said so; outside of a transaction each statement would commit.
            raise FailedPrecondition("the transaction of this unit is lost", reason="transaction_lost")

    def before_commit(self, key: Hashable, callback: Callable[[], None]) -> None:
        """Have bytes on disk that rows of this unit refer to: call ``callback`` before the commit.

        It is called in the writer's thread, so it may block, and once for all units of the group that
        name ``key``. Where it raises OSError these units are refused with StoreUnavailable, and the
        others commit. It is not asked again: after a failed sync the next one may succeed although the
        bytes are gone, so the caller must write them again before a new unit refers to them.
        """
        if self.conditions is None:
            self.conditions = {}
        self.conditions.setdefault(key, callback)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the loop after the commit, in commit order, before anyone hears of it."""
        self.after_commit.append(callback)

    def version(self, stream: str) -> int:
        """Give the version of ``stream``: how many events it has had, those of this unit too."""
        return self._log.version(stream)

    def tell(
        self,
        notification: Notification | Rendered[Notification],
        *,
        stream: str | None = None,
        expected_version: ExpectedVersion = "any",
    ) -> StoredEvent:
        """Tell a declared, durable event, in this commit."""
        if isinstance(notification, Rendered):
            spec, data = spec_of(notification.message), notification.data
        else:
            spec = spec_of(type(notification))
            data = notification.__pydantic_serializer__.to_json(notification, by_alias=True)
        if spec.ephemeral:
            raise InvalidArgument(f"{spec.name} is ephemeral: tell it with bus.notify", reason="ephemeral")
        if spec.version > 1:
            data = stamped(data, spec.version)
        return self.tell_raw(spec.name, data, stream=stream, expected_version=expected_version)

    def tell_raw(
        self,
        event: str,
        data: bytes,
        *,
        event_id: str | None = None,
        stream: str | None = None,
        expected_version: ExpectedVersion = "any",
        cause: bool = True,
    ) -> StoredEvent:
        """Tell an event by name; ``data``: JSON.

        ``event_id``: the same one again gives the event stored before (its ``seq`` is set), and AlreadyExists
        where that says something else. ``cause``: it was caused by the request at work, rather than being
        the request itself.
        """
        if len(data) > MAX_EVENT_DATA:
            raise InvalidArgument(
                f"data of {event} has {len(data)} bytes", reason="too_large", limit=MAX_EVENT_DATA
            )
        home = self._log.home
        if len(data) > CLAIM_CHECKED and home is not None:
            self.before_commit((store_blob, data), partial(store_blob, home, data))
        told = self._event(event, data, event_id, cause=cause)
        told.stream = stream
        if event_id is not None:
            known = self._log.find(told)
            if known is not None:
                return known
        if stream is not None:
            told.version = self._log.next_version(stream, expected_version)
        self._log.append(told, named=event_id is not None)
        self.told.append(told)
        return told

    def record(self, envelope: EventEnvelope, data: bytes) -> None:
        """Write the row of a request: what was asked, by whom, and the digest of its data."""
        row = StoredEvent(
            envelope.event,
            data,
            envelope.event_id,
            envelope.correlation_id,
            envelope.causation_id,
            envelope.actor,
            envelope.hop,
            self._now_us,
            kind="request",
        )
        self._log.append(row)

    def end_statements(self) -> None:
        """End what the unit has left under way: a change that gives rows is counted with its last one.

        And while anything is under way, an interrupt of the past stops whatever comes next.
        """
        for cursor in self._cursors:
            cursor.close()

    def close(self, *, undo: bool) -> None:
        """End the unit's savepoint, if it has one."""
        if self._apart and self._ran:
            if undo:
                self._connection.execute("ROLLBACK TO unit")
            self._connection.execute("RELEASE unit")

    def _event(self, event: str, data: bytes, event_id: str | None, *, cause: bool) -> StoredEvent:
        envelope = self._envelope
        if envelope is None:
            ident = event_id or new_id()
            self._correlation = self._correlation or ident
            return StoredEvent(event, data, ident, self._correlation, None, "system", 0, self._now_us)
        if not cause:
            ident = event_id or (new_id() if self.told else envelope.event_id)
            causation, hop = envelope.causation_id, envelope.hop
        else:
            ident = event_id or new_id()
            causation, hop = envelope.event_id, envelope.hop + 1
            if hop > MAX_HOPS:
                raise FailedPrecondition(
                    f"{event} is {hop} events away from its origin", reason="too_many_hops", limit=MAX_HOPS
                )
        return StoredEvent(
            event,
            data,
            ident,
            envelope.correlation_id,
            causation,
            envelope.actor,
            hop,
            self._now_us,
        )


Unit = Callable[[Transaction], R]
"""A unit of work: synchronous, SQL and ``tell`` only, may be run twice, interrupted after 250 ms."""


@dataclass(slots=True, eq=False)
class Telling(Generic[R]):
    """A unit of a request that is the event it tells, as ``event:publish`` is: it does nothing else.

    Most requests of a busy log are of this kind, so the writer does it without a Transaction where it can.
    Where the request leaves no row of its own (``recorded=False``) its id is that of the event; else it has
    caused the event.
    """

    event: str
    data: bytes
    """JSON."""
    reply: Callable[[StoredEvent, bool], R]
    """Gives what the unit gives, of the event as it is stored and whether it was before. Believed."""
    event_id: str | None = None
    stream: str | None = None

    def __call__(self, tx: Transaction) -> R:
        """Tell it as any unit does."""
        cause = tx.envelope is not None and tx.envelope.to_record
        told = tx.tell_raw(self.event, self.data, event_id=self.event_id, stream=self.stream, cause=cause)
        return self.reply(told, told not in tx.told)

    def alone(self, envelope: EventEnvelope | None, now_us: int) -> StoredEvent | None:
        """Give the event, where nothing has to be looked up or kept elsewhere for it."""
        if (
            envelope is None
            or envelope.to_record
            or self.event_id is not None
            or self.stream is not None
            or len(self.data) > CLAIM_CHECKED
        ):
            return None
        return StoredEvent(
            self.event,
            self.data,
            envelope.event_id,
            envelope.correlation_id,
            envelope.causation_id,
            envelope.actor,
            envelope.hop,
            now_us,
        )
