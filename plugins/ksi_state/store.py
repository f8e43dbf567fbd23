"""State in the database, with the values last used at hand.

A point read through a thread costs several times the event around it, so values that were read or
written lately are kept. They change in commit order, on the loop, before anyone hears of the commit.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import orjson
from pydantic import JsonValue

from ksi_common.events.state import Changed, NamespaceCleared, Removed
from ksi_daemon.plugin import Database, Rendered, Transaction

CACHED_BYTES: Final = 8 * 1024 * 1024
REPLY_BYTES: Final = 1024 * 1024
"""Of the keys of one reply: lists page by bytes, too."""
_KEY_OVERHEAD: Final = 8
_OVERHEAD: Final = 200
"""Bytes of a cached entry besides its text, about."""

Entry = tuple[str, str]


class StateStore:
    """Values by namespace and key."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: OrderedDict[Entry, str | None] = OrderedDict()
        self._bytes = 0
        self._changes = 0

    def cached(self, namespace: str, key: str) -> tuple[bool, str | None]:
        """Tell whether a value is at hand, and give it, as JSON; None: there is none."""
        entry = (namespace, key)
        if entry not in self._cache:
            return False, None
        self._cache.move_to_end(entry)
        return True, self._cache[entry]

    async def read(self, namespace: str, key: str) -> str | None:
        """Read a value that is not at hand."""
        entry = (namespace, key)
        changes = self._changes
        rows = await self._database.read("SELECT value FROM state WHERE namespace = ? AND key = ?", entry)
        text = rows[0]["value"] if rows else None
        if entry in self._cache:
            # Another read was here first. It may have seen an older row than this one did, of a commit that
            # is not published yet; whoever reads next must not go back behind what this one is given.
            return self._cache[entry]
        if changes == self._changes:  # else the row may be older than what was committed meanwhile
            self._remember(entry, text)
        return text

    def set(
        self,
        tx: Transaction,
        namespace: str,
        key: str,
        value: JsonValue,
        metadata: Mapping[str, JsonValue] | None,
    ) -> None:
        """Store a value and tell it."""
        text = orjson.dumps(value).decode()
        extra = None if metadata is None else orjson.dumps(metadata).decode()
        tx.execute(
            "INSERT INTO state VALUES (?, ?, ?, ?) ON CONFLICT (namespace, key) "
            "DO UPDATE SET value = excluded.value, metadata = excluded.metadata",
            (namespace, key, text, extra),
        )
        changed = {"namespace": namespace, "key": key, "value": orjson.Fragment(text), "metadata": metadata}
        tx.tell(Rendered(Changed, orjson.dumps(changed)))
        tx.on_commit(lambda: self._keep((namespace, key), text))

    def delete(self, tx: Transaction, namespace: str, key: str) -> bool:
        """Remove a value; tell it, and give True, where there was one."""
        sql = "DELETE FROM state WHERE namespace = ? AND key = ?"
        there = tx.execute(sql, (namespace, key)).rowcount > 0
        if there:
            tx.tell(Removed(namespace=namespace, key=key))
            tx.on_commit(lambda: self._keep((namespace, key), None))
        return there

    def clear(self, tx: Transaction, namespace: str) -> int:
        """Remove a namespace and tell it; give how many values it had."""
        deleted = tx.execute("DELETE FROM state WHERE namespace = ?", (namespace,)).rowcount
        tx.tell(NamespaceCleared(namespace=namespace, keys_deleted=deleted))
        tx.on_commit(self._forget)
        return deleted

    async def keys(
        self, namespace: str, pattern: str | None, *, after: str | None, limit: int
    ) -> tuple[Sequence[str], bool]:
        """List keys in order, and tell whether there may be more.

        ``pattern``: as in a shell, but ``[`` is a plain character.
        """
        glob = (pattern or "*").replace("[", "[[]")
        rows = await self._database.read(
            "SELECT key FROM state WHERE namespace = ? AND key > ? AND key GLOB ? ORDER BY key LIMIT ?",
            (namespace, after or "", glob, limit),
        )
        keys: list[str] = []
        size = 0
        for row in rows:
            size += len(row["key"].encode()) + _KEY_OVERHEAD
            if size > REPLY_BYTES:
                return keys, True
            keys.append(row["key"])
        return keys, len(keys) == limit

    def _keep(self, entry: Entry, text: str | None) -> None:
        self._changes += 1
        self._remember(entry, text)

    def _remember(self, entry: Entry, text: str | None) -> None:
        self._drop(entry)
        self._cache[entry] = text
        self._bytes += _size(entry, text)
        while self._bytes > CACHED_BYTES:
            self._drop(next(iter(self._cache)))

    def _drop(self, entry: Entry) -> None:
        if entry in self._cache:
            self._bytes -= _size(entry, self._cache.pop(entry))

    def _forget(self) -> None:
        self._changes += 1
        self._cache.clear()
        self._bytes = 0


def _size(entry: Entry, text: str | None) -> int:
    return len(entry[0]) + len(entry[1]) + len(text or "") + _OVERHEAD
