"""Apply events to a generation: what they make, and how far they go, in one commit a slice."""

from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Final, Protocol

import orjson

from ksi_common.envelope import StoredEvent
from ksi_common.errors import InternalError
from ksi_common.messages import Message
from ksi_common.records import record
from ksi_daemon.database import Database, Error, Transaction
from ksi_daemon.database.errors import StoreUnavailable, UnitInterrupted, translate
from ksi_daemon.eventlog import EventLog, LogPage
from ksi_daemon.projections.declaration import Declaration, Rows
from ksi_daemon.projections.generations import Generation, checkpoint, put_documents
from ksi_daemon.supervisor import attempt
from ksi_daemon.threads import Threads

SLICE_S: Final = 0.01
"""What a slice may keep the writer from others, about."""
ALONE: Final = 3
"""Tries of an event alone, after its slice was interrupted: it is heavy, or the machine stood still."""
_NOT_ITS_OWN: Final = (StoreUnavailable, UnitInterrupted)
"""Errors of an event that say nothing of it: it is tried again."""


class ApplyError(Exception):
    """``apply`` cannot take an event: what comes before it is applied, it and the rest are not."""

    def __init__(self, event: StoredEvent, cause: BaseException) -> None:
        super().__init__(f"{event.event} at {event.seq}: {type(cause).__name__}: {cause}")
        self.event = event
        self.__cause__ = cause


class Folder(Protocol):
    """Applies pages of the log to a generation."""

    async def fold(self, generation: Generation, page: LogPage) -> None:
        """Apply one, and move the generation; raise ApplyError, moved to just before that event."""
        ...


def folder_of(declaration: Declaration, database: Database, log: EventLog, threads: Threads) -> Folder:
    """Make the folder that a declaration needs."""
    reading = _Reading(declaration, log, threads)
    if declaration.document is None:
        return _Tables(reading, database)
    return _Documents(reading, database, declaration.document)


async def move(database: Database, generation: Generation, position: int, missing: int = 0) -> None:
    """Store that nothing is to be applied up to ``position``."""
    await database.write_apart(lambda tx: checkpoint(tx, generation, position, missing))
    _moved(generation, position, missing)


def missing_in(page: LogPage) -> int:
    """Count what a page of the log cannot give."""
    return sum(damage.count for damage in page.damaged) + page.removed


@record
class _Reading:
    """Make of events what ``apply`` is given, in a thread."""

    declaration: Declaration
    log: EventLog
    threads: Threads

    async def read(self, events: Sequence[StoredEvent]) -> "_Given":
        return await self.threads.run(partial(self._read, events))

    def _read(self, events: Sequence[StoredEvent]) -> "_Given":
        given: list[tuple[str, object]] = []
        for event in events:
            made = attempt(partial(self._one, event))
            if isinstance(made, BaseException):
                return given, ApplyError(event, made)
            given.append(made)
        return given, None

    def _one(self, event: StoredEvent) -> tuple[str, object]:
        value = self.declaration.read(event, self.log.cursor(event.position))
        return self.declaration.key_of(value), value


_Given = tuple[Sequence[tuple[str, object]], ApplyError | None]


@record
class _Tables:
    reading: _Reading
    database: Database

    async def fold(self, generation: Generation, page: LogPage) -> None:
        given, error = await self.reading.read(page.events)
        done, end, interrupted = 0, len(given), 0
        while done < end:
            try:
                done = await self._slice(generation, page, given[: done + 1 if interrupted else end], done)
                interrupted = 0
            except ApplyError as failed:  # its slice was taken back as a whole: again, up to that event
                error, end = failed, page.events.index(failed.event)
            except UnitInterrupted as late:
                interrupted += 1
                if interrupted > ALONE:
                    error, end = ApplyError(page.events[done], late), done
        if error is not None:
            raise error

    async def _slice(
        self, generation: Generation, page: LogPage, given: Sequence[tuple[str, object]], start: int
    ) -> int:
        """Apply some of what is given, from ``start`` on; give where to go on."""
        apply = self.reading.declaration.apply

        def unit(tx: Transaction) -> tuple[int, int, int]:
            rows = Rows(tx, generation.table)
            ends = monotonic() + SLICE_S
            index = start
            while index < len(given) and (index == start or monotonic() < ends):
                made = attempt(partial(apply, rows, given[index][1]))
                if isinstance(made, Error) and isinstance(translate(made), _NOT_ITS_OWN):
                    raise made
                if isinstance(made, BaseException):
                    raise ApplyError(page.events[index], made)
                index += 1
            position, missing = _reached(page, index)
            checkpoint(tx, generation, position, missing)
            return index, position, missing

        done, position, missing = await self.database.write_apart(unit)
        _moved(generation, position, missing)
        return done


@record
class _Documents:
    reading: _Reading
    database: Database
    document: type[Message]

    async def fold(self, generation: Generation, page: LogPage) -> None:
        given, error = await self.reading.read(page.events)
        done, at_once = 0, len(given)
        while done < len(given):
            try:
                done = await self._slice(generation, page, given[: done + at_once], done)
            except UnitInterrupted:
                if at_once == 1:
                    raise
                at_once //= 2  # so many documents are more than one unit may write
        if error is not None:
            raise error

    async def _slice(
        self, generation: Generation, page: LogPage, given: Sequence[tuple[str, object]], start: int
    ) -> int:
        """Apply what is given, from ``start`` on; give where to go on."""
        states = await self._load(generation, {key for key, _ in given[start:]})
        apply = partial(self._apply, page, given, states, start=start)
        done, changed, failed = await self.reading.threads.run(apply)
        if done > start:
            position, missing = _reached(page, done)

            def unit(tx: Transaction) -> None:
                put_documents(tx, generation, changed)
                checkpoint(tx, generation, position, missing)

            await self.database.write_apart(unit)
            _moved(generation, position, missing)
        if failed is not None:
            raise failed
        return done

    def _apply(
        self,
        page: LogPage,
        given: Sequence[tuple[str, object]],
        stored: Mapping[str, str],
        *,
        start: int,
    ) -> tuple[int, Mapping[str, str], ApplyError | None]:
        states = {
            key: self.document.__pydantic_validator__.validate_json(text) for key, text in stored.items()
        }
        changed: dict[str, Message] = {}
        for index, (key, event) in enumerate(given[start:], start):
            state = changed.get(key, states.get(key))
            state = self.document() if state is None else state  # one that is false is one, too
            made = attempt(partial(self._next, state, event))
            if isinstance(made, BaseException):
                return index, _rendered(changed), ApplyError(page.events[index], made)
            changed[key] = made
        return len(given), _rendered(changed), None

    def _next(self, state: Message, event: object) -> Message:
        made = self.reading.declaration.apply(state, event)
        if not isinstance(made, self.document):
            raise InternalError(f"apply gave {type(made).__name__}, not {self.document.__name__}")
        return made

    async def _load(self, generation: Generation, keys: set[str]) -> Mapping[str, str]:
        rows = await self.database.read(
            "SELECT key, state FROM projection_documents WHERE name = ? AND generation = ? "
            "AND key IN (SELECT value FROM json_each(?))",
            (generation.name, generation.number, orjson.dumps(sorted(keys)).decode()),
        )
        return {row["key"]: row["state"] for row in rows}


def _rendered(states: Mapping[str, Message]) -> Mapping[str, str]:
    return {key: state.__pydantic_serializer__.to_json(state).decode() for key, state in states.items()}


def _reached(page: LogPage, index: int) -> tuple[int, int]:
    """Give the position after so many events of a page, and what was missing up to there."""
    if index == len(page.events):
        return page.last, missing_in(page)
    return page.events[index - 1].position, 0


def _moved(generation: Generation, position: int, missing: int) -> None:
    generation.position = generation.stored = position
    generation.missing += missing
