"""Queues as rows. An item whose time is over is given to nobody, whether or not it is removed yet."""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import orjson
from pydantic import JsonValue

from ksi_common.events.async_state import (
    MAX_ITEMS,
    ItemPopped,
    ItemPushed,
    ItemsExpired,
    QueueDeleted,
    QueueExpiring,
    Sweep,
)
from ksi_daemon.plugin import Clock, Database, ResourceExhausted, Timers, Transaction, format_time

REPLY_BYTES: Final = 1024 * 1024
"""Of the values of one reply: lists page by bytes, too."""
SWEPT: Final = 1000
"""Items that one sweep removes at most."""
SWEEP_AFTER_US: Final = 1_000_000
"""How long what has expired may lie, so that items which expire one by one are not removed one by one."""
TIMER: Final = "async_state:sweep"

_LIVE: Final = "(expires IS NULL OR expires > ?)"
_OF: Final = "namespace = ? AND key = ?"
_INSERT: Final = "INSERT INTO queue_items (namespace, key, value, expires) VALUES (?, ?, ?, ?)"
_COUNT: Final = f"SELECT count(*) FROM queue_items WHERE {_OF} AND {_LIVE}"  # noqa: S608 -- of constants
_FIRST: Final = f"SELECT number, value FROM queue_items WHERE {_OF} AND {_LIVE} ORDER BY number LIMIT 1"  # noqa: S608
_READ: Final = (
    f"SELECT number, value FROM queue_items WHERE {_OF} AND number > ? AND {_LIVE} "  # noqa: S608
    "ORDER BY number LIMIT ?"
)
_DELETE: Final = f"DELETE FROM queue_items WHERE {_OF}"  # noqa: S608
_EXPIRE: Final = f"UPDATE queue_items SET expires = ? WHERE {_OF} AND (expires IS NULL OR expires > ?)"  # noqa: S608
_LAST: Final = f"SELECT max(number) FROM queue_items WHERE {_OF}"  # noqa: S608
_EARLIEST: Final = "SELECT min(expires) FROM queue_items WHERE expires IS NOT NULL"
_EXPIRED: Final = (
    "SELECT namespace, key, number FROM queue_items WHERE expires <= ? ORDER BY expires, number LIMIT ?"
)
# From key to key, rather than over all items of all queues.
_KEYS: Final = """
    WITH RECURSIVE keys (key) AS (
        SELECT min(key) FROM queue_items WHERE namespace = ?1 AND key > ?2
        UNION ALL
        SELECT (SELECT min(key) FROM queue_items WHERE namespace = ?1 AND key > keys.key)
        FROM keys WHERE keys.key IS NOT NULL
    )
    SELECT key FROM keys WHERE key IS NOT NULL AND EXISTS (
        SELECT 1 FROM queue_items AS item
        WHERE item.namespace = ?1 AND item.key = keys.key AND (item.expires IS NULL OR item.expires > ?3)
    ) LIMIT ?4
"""


class Queues:
    """The queues of one daemon."""

    def __init__(self, database: Database, timers: Timers, clock: Clock) -> None:
        self._database = database
        self._timers = timers
        self._clock = clock

    async def push(self, namespace: str, key: str, value: JsonValue, *, ttl_s: float | None) -> int:
        """Put a value at the end, and tell it; give its position. Raises ResourceExhausted."""
        text = orjson.dumps(value).decode()
        now_us = self._clock.time_us()
        expires = None if ttl_s is None else now_us + round(ttl_s * 1_000_000)

        def put(tx: Transaction) -> int:
            (length,) = tx.execute(_COUNT, (namespace, key, now_us)).fetchone()
            if length >= MAX_ITEMS:
                raise ResourceExhausted(
                    f"queue full ({length} of {MAX_ITEMS}) for {key!r} in {namespace}",
                    reason="queue_full",
                    limit=MAX_ITEMS,
                )
            if expires is not None:
                self._sweep_by(tx, expires)
            number = tx.execute(_INSERT, (namespace, key, text, expires)).lastrowid or 0
            tx.tell(
                ItemPushed(
                    namespace=namespace,
                    key=key,
                    number=number,
                    data=value,
                    expires=None if expires is None else format_time(expires),
                )
            )
            return int(length) + 1

        return await self._database.write(put)

    async def pop(self, namespace: str, key: str) -> tuple[JsonValue, bool]:
        """Take the first value, and tell it; tell whether there was one."""
        now_us = self._clock.time_us()

        def take(tx: Transaction) -> str | None:
            row = tx.execute(_FIRST, (namespace, key, now_us)).fetchone()
            if row is None:
                return None
            number, text = row
            tx.execute("DELETE FROM queue_items WHERE number = ?", (number,))
            tx.tell(ItemPopped(namespace=namespace, key=key, number=number))
            return str(text)

        text = await self._database.write(take)
        return (None, False) if text is None else (orjson.loads(text), True)

    async def read(
        self, namespace: str, key: str, *, after: int, limit: int
    ) -> tuple[Sequence[JsonValue], int | None]:
        """Read values in order; give the number to read on from, where there may be more."""
        now_us = self._clock.time_us()
        values: list[JsonValue] = []
        size = 0
        rows = await self._database.read(_READ, (namespace, key, after, now_us, limit))
        for number, text in rows:
            size += len(text.encode()) + 1
            if values and size > REPLY_BYTES:
                return values, after
            values.append(orjson.loads(text))
            after = number
        return values, after if len(rows) == limit else None

    async def length(self, namespace: str, key: str) -> int:
        """Count the values of a queue."""
        rows = await self._database.read(_COUNT, (namespace, key, self._clock.time_us()))
        return int(rows[0][0])

    async def keys(self, namespace: str, *, after: str, limit: int) -> Sequence[str]:
        """List the queues that have a value, in order."""
        rows = await self._database.read(_KEYS, (namespace, after, self._clock.time_us(), limit))
        return [row[0] for row in rows]

    async def delete(self, namespace: str, key: str) -> int:
        """Remove a queue, and tell it; give how many values it had."""
        now_us = self._clock.time_us()

        def remove(tx: Transaction) -> int:
            (length,) = tx.execute(_COUNT, (namespace, key, now_us)).fetchone()
            if tx.execute(_DELETE, (namespace, key)).rowcount:
                tx.tell(QueueDeleted(namespace=namespace, key=key, deleted=length))
            return int(length)

        return await self._database.write(remove)

    async def expire(self, namespace: str, key: str, *, ttl_s: float) -> tuple[int, int]:
        """Let all that is in a queue expire, and tell it; give how many values, and when."""
        now_us = self._clock.time_us()
        expires = now_us + round(ttl_s * 1_000_000)

        def limit(tx: Transaction) -> int:
            (length,) = tx.execute(_COUNT, (namespace, key, now_us)).fetchone()
            (last,) = tx.execute(_LAST, (namespace, key)).fetchone()
            if length:
                self._sweep_by(tx, expires)
                tx.execute(_EXPIRE, (expires, namespace, key, expires))
                tx.tell(
                    QueueExpiring(namespace=namespace, key=key, number=last, expires=format_time(expires))
                )
            return int(length)

        return await self._database.write(limit), expires

    async def sweep(self) -> tuple[int, bool]:
        """Remove what has expired, and tell it; give how much, and whether there is more.

        The timer that asked for it, and is taken away by that, is set for what expires next.
        """
        now_us = self._clock.time_us()

        def remove(tx: Transaction) -> tuple[int, bool]:
            rows = sorted(tx.execute(_EXPIRED, (now_us, SWEPT)).fetchall())
            for (namespace, key), items in groupby(rows, key=lambda row: (row[0], row[1])):
                numbers = [item[2] for item in items]
                for number in numbers:
                    tx.execute("DELETE FROM queue_items WHERE number = ?", (number,))
                tx.tell(ItemsExpired(namespace=namespace, key=key, numbers=numbers))
            (earliest,) = tx.execute(_EARLIEST).fetchone()
            if earliest is not None:
                more = len(rows) == SWEPT
                due_us = now_us if more else max(earliest, now_us) + SWEEP_AFTER_US
                self._timers.schedule_in(tx, TIMER, Sweep(), due_us=due_us)
            else:
                self._timers.cancel_in(tx, TIMER)
            return len(rows), len(rows) == SWEPT

        return await self._database.write(remove)

    def _sweep_by(self, tx: Transaction, expires: int) -> None:
        """Have the timer in time for an item that is about to get this time."""
        (earliest,) = tx.execute(_EARLIEST).fetchone()
        if earliest is None or expires < earliest:
            self._timers.schedule_in(tx, TIMER, Sweep(), due_us=expires + SWEEP_AFTER_US)
