"""Idempotency keys as rows: what was asked under a key, and what it was answered."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from ksi_common.records import record
from ksi_daemon.database import Transaction

_FIND: Final = (
    "SELECT digest, event_id, time, reply, error FROM idempotency_keys "
    "WHERE key = ? AND event = ? AND actor = ?"
)
_ADD: Final = (
    "INSERT INTO idempotency_keys (key, event, actor, digest, event_id, time, reply) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_KEEP: Final = "UPDATE idempotency_keys SET reply = ?, error = ? WHERE key = ? AND event = ? AND actor = ?"
_OLDEST: Final = "SELECT time FROM idempotency_keys ORDER BY id LIMIT 1"
_FORGET: Final = (
    "DELETE FROM idempotency_keys WHERE id IN "
    "(SELECT id FROM (SELECT id, time FROM idempotency_keys ORDER BY id LIMIT ?) WHERE time < ?)"
)


class KeyName(NamedTuple):
    """What tells keys apart: the same word of another actor, or for another event, is another key."""

    key: str
    event: str
    actor: str


@record
class KeyRow:
    """A key whose request took effect; ``reply`` or ``error`` (JSON) is its answer, where that is known."""

    digest: bytes
    event_id: str
    time_us: int
    reply: str | None
    error: str | None


class Readable(Protocol):
    """Where one row can be read at once."""

    def peek(self, sql: str, parameters: Sequence[Any]) -> tuple[Any, ...] | None:
        """Give the row."""
        ...


def find(database: Readable, name: KeyName) -> KeyRow | None:
    """Read a key as it is committed."""
    return _row(database.peek(_FIND, name))


def find_in(tx: Transaction, name: KeyName) -> KeyRow | None:
    """Read a key within a unit of work."""
    return _row(tx.execute(_FIND, name).fetchone())


def add_in(
    tx: Transaction, name: KeyName, digest: bytes, event_id: str, time_us: int, reply: str | None
) -> None:
    """Write a key with what it did, and with its answer where that is known already."""
    tx.execute(_ADD, (*name, digest, event_id, time_us, reply))


def answer_in(tx: Transaction, name: KeyName, *, reply: str | None = None, error: str | None = None) -> None:
    """Write the answer of a key that is there."""
    tx.execute(_KEEP, (reply, error, *name))


def oldest(database: Readable) -> int | None:
    """Give the time of the oldest key, microseconds since 1970."""
    row = database.peek(_OLDEST, ())
    return None if row is None else int(row[0])


def forgetting(before_us: int, limit: int) -> Callable[[Transaction], int]:
    """Make the unit that removes the oldest keys, at most so many; it gives how many."""
    return lambda tx: tx.execute(_FORGET, (limit, before_us)).rowcount


def _row(row: tuple[Any, ...] | None) -> KeyRow | None:
    return None if row is None else KeyRow(*row)
