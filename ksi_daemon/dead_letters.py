"""Dead letters: what failed for good, kept until a person says what is to become of it.

Whoever gives something up writes a letter in the unit of work in which it does so, and offers, by its
``origin``, a way to try again. Nothing here drops one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, Protocol

from ksi_common.clock import Clock
from ksi_common.envelope import StoredEvent
from ksi_common.errors import FailedPrecondition, NotFound
from ksi_common.events.deadletter import Added, Discarded, Edited, Redriven
from ksi_common.ids import new_id
from ksi_common.records import record
from ksi_daemon.database import Database, Transaction

MAX_MESSAGE: Final = 1000
"""Characters of an error that are kept."""

LetterKind = Literal["event", "job", "step", "message"]

_COLUMNS: Final = (
    "id, kind, origin, name, event, event_id, seq, stream, version, data, original, reference, "
    "correlation_id, causation_id, actor, time, attempts, reason, message, first_failed, last_failed, state, "
    "redrives"
)
_WITHOUT_DATA: Final = _COLUMNS.replace("data, original", "NULL, iif(original IS NULL, NULL, 'null')")
REFERRED: Final = (
    "SELECT id, json_extract(reference, '$.path'), json_extract(reference, '$.offset'), "
    "json_extract(reference, '$.length'), json_extract(reference, '$.sha256') "
    "FROM dead_letters WHERE reference IS NOT NULL"
)
"""The data of letters that is in blobs."""
_GET: Final = f"SELECT {_COLUMNS} FROM dead_letters WHERE id = ?"  # noqa: S608


@record(kw_only=True)
class DeadLetter:
    """What failed for good. Times in microseconds since 1970; ``data``, ``original``, ``reference``: JSON."""

    id: int = 0
    kind: LetterKind
    origin: str
    """What gave it up: consumer, group, subscriber, timer, or a word of a plugin."""
    name: str
    """Which of them."""
    event: str
    event_id: str | None = None
    seq: int | None = None
    """In the log. The same event of the same name is one letter, however often it fails for good."""
    stream: str | None = None
    version: int | None = None
    data: str | None = None
    original: str | None = None
    """The data before it was edited; None: it was not."""
    reference: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    actor: str = "system"
    time_us: int | None = None
    """When the event was told."""
    attempts: int = 1
    reason: str
    message: str
    first_failed_us: int | None = None
    """None: now."""
    last_failed_us: int | None = None
    state: Literal["dead", "redriven", "discarded"] = "dead"
    redrives: int = 0

    def to_event(self) -> StoredEvent:
        """Give the event as it is to be tried again."""
        return StoredEvent(
            event=self.event,
            data=(self.data or "null").encode(),
            event_id=self.event_id or new_id(),
            correlation_id=self.correlation_id or self.event_id or "",
            causation_id=self.causation_id,
            actor=self.actor,
            hop=0,
            time_us=self.time_us or 0,
            seq=self.seq,
            stream=self.stream,
            version=self.version,
        )


Redriver = Callable[[Transaction, DeadLetter], None]
"""Try again, in the unit given; raise FailedPrecondition where that is not possible."""


class DeadLetters(Protocol):
    """Where what failed for good is kept."""

    def add_in(self, tx: Transaction, letter: DeadLetter) -> int:
        """Keep a letter, in a unit of work; give its id."""
        ...

    def offer(self, origin: str, redrive: Redriver) -> None:
        """Say how letters of ``origin`` are tried again."""
        ...


class DatabaseDeadLetters:
    """Dead letters in the database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._redrivers: dict[str, Redriver] = {}

    def offer(self, origin: str, redrive: Redriver) -> None:
        """Say how letters of ``origin`` are tried again."""
        self._redrivers[origin] = redrive

    def add_in(self, tx: Transaction, letter: DeadLetter) -> int:
        """Keep a letter and tell it; one that was tried again and failed again is dead again."""
        now = self._clock.time_us()
        letter = replace(
            letter,
            message=as_stored(letter.message),
            first_failed_us=letter.first_failed_us or now,
            last_failed_us=letter.last_failed_us or now,
        )
        ident = _again(tx, letter) or _insert(tx, letter)
        tx.tell(
            Added(
                id=ident, kind=letter.kind, origin=letter.origin, name=letter.name, event=letter.event,
                event_id=letter.event_id, attempts=letter.attempts, reason=letter.reason,
                message=letter.message,
            )
        )  # fmt: skip
        return ident

    async def get(self, ident: int) -> DeadLetter:
        """Read a letter; raise NotFound where there is none."""
        rows = await self._database.read(_GET, (ident,))
        if not rows:
            raise _unknown(ident)
        return _letter(rows[0])

    async def page(
        self, wanted: Mapping[str, str | None], *, after: int, limit: int, whole: bool = False
    ) -> tuple[Sequence[DeadLetter], bool]:
        """Read letters by id; ``wanted``: values of kind, origin, name, state, or an event's pattern.

        ``whole``: with their data; tell also whether there may be more.
        """
        terms, parameters = ["id > ?"], [str(after)]
        for column in ("kind", "origin", "name", "state"):
            if wanted.get(column) is not None:
                terms.append(f"{column} = ?")
                parameters.append(str(wanted[column]))
        if wanted.get("event") is not None:
            terms.append("event GLOB ?")
            parameters.append(str(wanted["event"]))
        columns = _COLUMNS if whole else _WITHOUT_DATA
        sql = f"SELECT {columns} FROM dead_letters WHERE {' AND '.join(terms)} ORDER BY id LIMIT ?"  # noqa: S608
        rows = await self._database.read(sql, (*parameters, limit))
        return [_letter(row) for row in rows], len(rows) == limit

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """Count what nobody has dealt with, by origin and name."""
        sql = "SELECT origin, name, count(*) FROM dead_letters WHERE state = 'dead' GROUP BY origin, name"
        return {(row[0], row[1]): row[2] for row in await self._database.read(sql)}

    async def redrive(self, idents: Sequence[int]) -> tuple[list[int], list[int]]:
        """Try letters again, all or none; give those that are, and those that were already."""

        def unit(tx: Transaction) -> tuple[list[int], list[int]]:
            letters = [_get(tx, ident) for ident in dict.fromkeys(idents)]
            for letter in letters:
                if letter.state != "redriven":
                    self._redrive(tx, letter)
            return _sorted(letters, "redriven")

        return await self._database.write(unit)

    async def discard(self, idents: Sequence[int], reason: str) -> tuple[list[int], list[int]]:
        """Give letters up, all or none; give those that are, and those that were already."""

        def unit(tx: Transaction) -> tuple[list[int], list[int]]:
            letters = [_get(tx, ident) for ident in dict.fromkeys(idents)]
            for letter in letters:
                if letter.state == "redriven":
                    raise FailedPrecondition(
                        f"dead letter {letter.id} is being tried again", reason="redriven", id=letter.id
                    )
                if letter.state == "dead":
                    tx.execute("UPDATE dead_letters SET state = 'discarded' WHERE id = ?", (letter.id,))
                    tx.tell(Discarded(**_named(letter), reason=reason))
            return _sorted(letters, "discarded")

        return await self._database.write(unit)

    async def edit(self, ident: int, data: str) -> DeadLetter:
        """Change what a dead letter says; give it as it is now. ``data``: JSON."""

        def unit(tx: Transaction) -> DeadLetter:
            letter = _get(tx, ident)
            if letter.state != "dead":
                raise FailedPrecondition(
                    f"dead letter {ident} is {letter.state}, so there is nothing to edit", reason=letter.state
                )
            if letter.data is None and letter.reference is None:
                raise FailedPrecondition(
                    f"dead letter {ident} has no data of its own: {letter.origin} {letter.name!r} keeps it",
                    reason="no_data",
                )
            edited = replace(letter, data=data, original=letter.original or letter.data, reference=None)
            if letter.seq is not None:  # what another event than the log's says has another id
                cause = letter.event_id if letter.original is None else letter.causation_id
                edited = replace(edited, event_id=new_id(), causation_id=cause)
            tx.execute(
                "UPDATE dead_letters SET data = ?, original = ?, reference = NULL, event_id = ?, "
                "causation_id = ? WHERE id = ?",
                (edited.data, edited.original, edited.event_id, edited.causation_id, ident),
            )
            tx.tell(Edited(**_named(edited)))
            return edited

        return await self._database.write(unit)

    def _redrive(self, tx: Transaction, letter: DeadLetter) -> None:
        redrive = self._redrivers.get(letter.origin)
        if redrive is None:
            raise FailedPrecondition(
                f"nothing here tries {letter.origin} {letter.name!r} again",
                reason="no_redriver",
                id=letter.id,
            )
        redrive(tx, letter)
        tx.execute(
            "UPDATE dead_letters SET state = 'redriven', redrives = redrives + 1 WHERE id = ?", (letter.id,)
        )
        tx.tell(Redriven(**_named(letter)))


def as_stored(message: str) -> str:
    """Give what an error says, in a form that can be stored: it is foreign, and may be of any size."""
    return message[:MAX_MESSAGE].encode(errors="replace").decode()


def letter_in(tx: Transaction, ident: int) -> DeadLetter | None:
    """Read a letter in a unit of work."""
    row = tx.execute(_GET, (ident,)).fetchone()
    return _letter(row) if row else None


def _get(tx: Transaction, ident: int) -> DeadLetter:
    letter = letter_in(tx, ident)
    if letter is None:
        raise _unknown(ident)
    return letter


def _again(tx: Transaction, letter: DeadLetter) -> int | None:
    """Have the letter of the same event be dead again; None where there is none."""
    if letter.seq is None:
        return None
    known = tx.execute(
        "SELECT id FROM dead_letters WHERE origin = ? AND name = ? AND seq = ?",
        (letter.origin, letter.name, letter.seq),
    ).fetchone()
    if known is None:
        return None
    tx.execute(
        "UPDATE dead_letters SET state = 'dead', attempts = attempts + ?, reason = ?, message = ?, "
        "last_failed = ? WHERE id = ?",
        (letter.attempts, letter.reason, letter.message, letter.last_failed_us, known[0]),
    )
    return int(known[0])


def _insert(tx: Transaction, letter: DeadLetter) -> int:
    values = _values(letter)
    sql = f"INSERT INTO dead_letters ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})"  # noqa: S608
    return int(tx.execute(sql, values).lastrowid or 0)


def _values(letter: DeadLetter) -> tuple[Any, ...]:
    return (
        None, letter.kind, letter.origin, letter.name, letter.event, letter.event_id, letter.seq,
        letter.stream, letter.version, letter.data, letter.original, letter.reference,
        letter.correlation_id, letter.causation_id, letter.actor, letter.time_us, letter.attempts,
        letter.reason, letter.message, letter.first_failed_us, letter.last_failed_us, letter.state,
        letter.redrives,
    )  # fmt: skip


def _letter(row: Sequence[Any]) -> DeadLetter:
    (
        ident, kind, origin, name, event, event_id, seq, stream, version, data, original, reference,
        correlation_id, causation_id, actor, time_us, attempts, reason, message, first, last, state, redrives,
    ) = row  # fmt: skip
    return DeadLetter(
        id=ident, kind=kind, origin=origin, name=name, event=event, event_id=event_id, seq=seq, stream=stream,
        version=version, data=data, original=original, reference=reference, correlation_id=correlation_id,
        causation_id=causation_id, actor=actor, time_us=time_us, attempts=attempts, reason=reason,
        message=message, first_failed_us=first, last_failed_us=last, state=state, redrives=redrives,
    )  # fmt: skip


def _named(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "origin": letter.origin,
        "name": letter.name,
        "event": letter.event,
        "event_id": letter.event_id,
    }


def _sorted(letters: Sequence[DeadLetter], state: str) -> tuple[list[int], list[int]]:
    return (
        [letter.id for letter in letters if letter.state != state],
        [letter.id for letter in letters if letter.state == state],
    )


def _unknown(ident: int) -> NotFound:
    return NotFound(f"there is no dead letter {ident}", id=ident, hint="deadletter:list lists what there is")
