"""Tables made of the log again, in another database."""

from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Final

from ksi_common.envelope import StoredEvent
from ksi_common.errors import DataLoss
from ksi_daemon.database import Database, Transaction
from ksi_daemon.eventlog import EventLog
from ksi_daemon.projections.declaration import Declaration, Rows
from ksi_daemon.projections.folding import missing_in
from ksi_daemon.threads import Threads

SLICE_S: Final = 0.1
"""Of one commit in a database that nobody else writes."""

_Given = Sequence[tuple[Declaration, object]]


class Rebuilding:
    """Apply the events of a log, in order, to the tables of another database."""

    def __init__(
        self, log: EventLog, rebuilders: Sequence[Declaration], target: Database, threads: Threads
    ) -> None:
        self.position = 0
        """Everything up to here is applied."""
        self.applied = 0
        self.missing = log.horizon
        """Positions of the log that it could not have: what is damaged, and what retention deleted."""
        self._log = log
        self._rebuilders = rebuilders
        self._target = target
        self._threads = threads
        self._patterns = tuple(pattern for each in rebuilders for pattern in each.patterns)

    async def advance(self, until: int) -> bool:
        """Apply the next page up to ``until``; give whether there is more."""
        if self.position >= until:
            return False
        page = await self._log.page(self.position, until, self._patterns, None)
        given = await self._threads.run(partial(self._read, page.events))
        done = 0
        while done < len(given):
            done = await self._target.write_apart(partial(self._apply, given, done))
        self.applied += len(page.events)
        self.missing += missing_in(page)
        self.position = page.last
        return self.position < until

    def _read(self, events: Sequence[StoredEvent]) -> _Given:
        given: list[tuple[Declaration, object]] = []
        for event in events:
            cursor = self._log.cursor(event.position)
            try:
                given += [
                    (each, each.read(event, cursor))
                    for each in self._rebuilders
                    if event.event in each.classes
                ]
            except ValueError as error:
                raise DataLoss(
                    f"event {event.event_id} at {event.seq} is no {event.event}: {error}",
                    reason="unreadable_event",
                    seq=event.seq,
                ) from error
        return given

    @staticmethod
    def _apply(given: _Given, start: int, tx: Transaction) -> int:
        ends = monotonic() + SLICE_S
        index = start
        while index < len(given) and (index == start or monotonic() < ends):
            declared, event = given[index]
            declared.apply(Rows(tx, declared.name), event)
            index += 1
        return index
