"""Tables made of the log again, in a database that has the log, and that nobody else writes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ksi_common.envelope import StoredEvent
from ksi_common.errors import DataLoss
from ksi_common.messages import Notification
from ksi_daemon.database import Connection
from ksi_daemon.database.log_rows import NAME, Damage, DamagedRow, RemovedEvent, event_of, read_page
from ksi_daemon.projections.rebuilders import Rebuilder, Tables

PAGE: Final = 1000
"""Rows that are looked at in one go."""

_Applying = tuple[type[Notification], Callable[[Any], None], Tables]


class Rebuilding:
    """Apply the events of a log, in order, to the tables beside it. The caller has a transaction open."""

    def __init__(
        self,
        connection: Connection,
        home: Path,
        rebuilders: Sequence[Rebuilder],
        upcast: Callable[[StoredEvent], None],
        *,
        begin: int = 0,
        horizon: int = 0,
    ) -> None:
        """``begin``: the tables are as they were there. ``horizon``: the log has nothing up to there."""
        self.position = max(begin, horizon)
        """Everything up to here is applied."""
        self.applied = 0
        self.missing = max(horizon - begin, 0)
        """Positions of the log that it could not have: what is damaged, and what retention deleted."""
        self._connection = connection
        self._home = home
        self._upcast = upcast
        self._applying: dict[str, list[_Applying]] = {}
        for each in rebuilders:
            apply, tables = each.on(connection)
            for name, kind in each.classes.items():
                self._applying.setdefault(name, []).append((kind, apply, tables))

    def advance(self, until: int) -> bool:
        """Apply the next page up to ``until``; give whether there is more."""
        last = min(until, self.position + PAGE)
        for row in read_page(self._connection, self.position, last, PAGE):
            if isinstance(row, Damage):
                self.missing += row.count
                continue
            applying = self._applying.get(row[NAME])
            if applying is not None:
                self._take(row, applying)
        self.position = last
        return last < until

    def _take(self, row: Sequence[Any], applying: Sequence[_Applying]) -> None:
        try:
            event = event_of(tuple(row), self._home)
        except DamagedRow:
            self.missing += 1
            return
        if event.kind == "request":
            return
        if type(event) is RemovedEvent:
            self.missing += 1
            return
        self._upcast(event)
        for kind, apply, tables in applying:
            tables.time_us = event.time_us
            apply(_read(kind, event))
        self.applied += 1


def _read(kind: type[Notification], event: StoredEvent) -> object:
    try:
        made: object = kind.__pydantic_validator__.validate_json(event.data)
    except ValueError as error:
        raise DataLoss(
            f"event {event.event_id} at {event.seq} is no {event.event}: {error}",
            reason="unreadable_event",
            seq=event.seq,
        ) from error
    return made
