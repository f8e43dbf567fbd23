"""Consumers as rows: what a unit of work does to them, and how they are read."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from ksi_common.records import record
from ksi_daemon.consumers.ledger import Failures
from ksi_daemon.database import Database, Transaction

_COLUMNS: Final = "id, kind, name, stream, position, max_attempts, created, changed"
_DONE: Final = "REPLACE INTO consumer_events (consumer, seq, done) VALUES (?, ?, 1)"
_FAILED: Final = (
    "REPLACE INTO consumer_events (consumer, seq, done, attempts, losses, due, first_failed, letter) "
    "VALUES (?, ?, 0, ?, ?, ?, ?, ?)"
)
_SETTLED: Final = "DELETE FROM consumer_events WHERE consumer = ? AND seq = ?"
_PASSED: Final = "DELETE FROM consumer_events WHERE consumer = ? AND seq <= ? AND letter IS NULL"
_ADVANCE: Final = "UPDATE consumers SET position = ?, changed = ? WHERE id = ?"
_PAGE: Final = 10_000


@record
class ConsumerRow:
    """A consumer as it is stored."""

    id: int
    kind: str
    name: str
    stream: str | None
    position: int
    max_attempts: int
    created_us: int
    changed_us: int
    patterns: Sequence[str] = ()


@record
class EventRow:
    """An event of which the position alone does not say enough."""

    seq: int
    done: bool
    failures: Failures


def create(
    tx: Transaction,
    kind: str,
    name: str,
    *,
    patterns: Iterable[str],
    stream: str | None,
    position: int,
    max_attempts: int,
    now_us: int,
) -> None:
    """Write a consumer; one that there is takes the patterns given, and stays where it is."""
    tx.execute(
        "INSERT INTO consumers (kind, name, stream, position, max_attempts, created, changed) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, name) "
        "DO UPDATE SET stream = excluded.stream, max_attempts = excluded.max_attempts",
        (kind, name, stream, position, max_attempts, now_us, now_us),
    )
    (ident,) = tx.execute("SELECT id FROM consumers WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    tx.execute("DELETE FROM consumer_patterns WHERE consumer = ?", (ident,))
    for pattern in patterns:
        tx.execute("INSERT OR IGNORE INTO consumer_patterns VALUES (?, ?)", (ident, pattern))


def delete(tx: Transaction, kind: str, name: str) -> bool:
    """Remove a consumer; False where there is none."""
    found = tx.execute("SELECT id FROM consumers WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    if found is None:
        return False
    tx.execute("DELETE FROM consumer_patterns WHERE consumer = ?", tuple(found))
    tx.execute("DELETE FROM consumer_events WHERE consumer = ?", tuple(found))
    tx.execute("DELETE FROM consumers WHERE id = ?", tuple(found))
    return True


def settle(tx: Transaction, consumer: int, seqs: Iterable[int], position: int, now_us: int) -> None:
    """Be done with events; what is wanted up to ``position`` is done with them."""
    for seq in seqs:
        if seq > position:
            tx.execute(_DONE, (consumer, seq))
        else:
            tx.execute(_SETTLED, (consumer, seq))
    tx.execute(_PASSED, (consumer, position))
    tx.execute(_ADVANCE, (position, now_us, consumer))


def fail(tx: Transaction, consumer: int, seq: int, failures: Failures) -> None:
    """Note that an event is to be given again."""
    known = (failures.attempts, failures.losses, failures.due_us, failures.first_us, failures.letter)
    tx.execute(_FAILED, (consumer, seq, *known))


def advance(tx: Transaction, consumer: int, position: int, now_us: int) -> bool:
    """Move the position forwards; False where it is there, or beyond."""
    sql = "UPDATE consumers SET position = ?, changed = ? WHERE id = ? AND position < ?"
    moved = tx.execute(sql, (position, now_us, consumer, position)).rowcount > 0
    if moved:
        tx.execute(_PASSED, (consumer, position))
    return moved


def forget_letter(tx: Transaction, consumer: int, seq: int, letter: int) -> bool:
    """Be done with a dead letter that was given again; False where that was so before."""
    sql = "DELETE FROM consumer_events WHERE consumer = ? AND seq = ? AND letter = ?"
    return tx.execute(sql, (consumer, seq, letter)).rowcount > 0


def is_open(tx: Transaction, row: ConsumerRow, seq: int) -> bool:
    """Tell whether an event is still to be given, or to be given again."""
    sql = "SELECT done FROM consumer_events WHERE consumer = ? AND seq = ?"
    known = tx.execute(sql, (row.id, seq)).fetchone()
    return seq > row.position if known is None else not known[0]


def find(tx: Transaction, kind: str, name: str) -> ConsumerRow | None:
    """Read one consumer in a unit of work, without its patterns."""
    sql = f"SELECT {_COLUMNS} FROM consumers WHERE kind = ? AND name = ?"  # noqa: S608
    row = tx.execute(sql, (kind, name)).fetchone()
    return ConsumerRow(*row) if row else None


async def load(database: Database, kind: str, name: str) -> ConsumerRow | None:
    """Read one consumer."""
    found = await listed(database, kind, name)
    return found[0] if found else None


async def listed(database: Database, kind: str | None = None, name: str | None = None) -> list[ConsumerRow]:
    """Read consumers, by kind and name."""
    sql = (
        f"SELECT {_COLUMNS}, (SELECT group_concat(pattern, ' ') FROM consumer_patterns WHERE consumer = id) "  # noqa: S608
        "FROM consumers WHERE coalesce(?, kind) = kind AND coalesce(?, name) = name ORDER BY kind, name"
    )
    return [_row(row) for row in await database.read(sql, (kind, name))]


async def events(database: Database, consumer: int) -> list[EventRow]:
    """Read what the position does not say."""
    found: list[EventRow] = []
    sql = (
        "SELECT seq, done, attempts, losses, due, first_failed, letter FROM consumer_events "
        "WHERE consumer = ? AND seq > ? ORDER BY seq LIMIT ?"
    )
    page: Sequence[Any] = ()
    while not found or len(page) == _PAGE:
        page = await database.read(sql, (consumer, found[-1].seq if found else -1, _PAGE))
        found += [EventRow(row[0], bool(row[1]), Failures(*row[2:])) for row in page]
        if not page:
            break
    return found


def _row(row: Sequence[Any]) -> ConsumerRow:
    return replace(ConsumerRow(*row[:-1]), patterns=(row[-1] or "").split())
