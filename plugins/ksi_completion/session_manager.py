"""Sessions: their names and rows, and that only one at a time writes a session's file."""

import asyncio
from weakref import WeakValueDictionary

from ksi_common.session_names import candidates
from ksi_daemon.plugin import Database, ResourceExhausted, Transaction

RETRY_AFTER_S = 2.0


class SessionManager:
    """Know the sessions. ``session_queue``: how many open completions one may have."""

    def __init__(self, database: Database, *, session_queue: int) -> None:
        self._database = database
        self._session_queue = session_queue
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def writing(self, session_id: str) -> asyncio.Lock:
        """Give the lock under which a session's file grows."""
        return self._locks.setdefault(session_id, asyncio.Lock())

    def enter_in(
        self, tx: Transaction, session_id: str | None, *, messages: int, time_us: int
    ) -> tuple[str, int]:
        """Take a prompt of so many messages into a session, a new one where it is None.

        Gives the session's id and how many completions of it are open already. Raises ResourceExhausted.
        """
        name = session_id or self._free_name(tx)
        (open_count,) = tx.execute(
            "SELECT count(*) FROM completions WHERE session_id = ? AND sha256 IS NULL", (name,)
        ).fetchone()
        if open_count >= self._session_queue:
            raise ResourceExhausted(
                f"queue of session {name} is full ({open_count})",
                reason="session_queue_full",
                retry_after_s=RETRY_AFTER_S,
            )
        tx.execute(
            "INSERT INTO completion_sessions (session_id, created_us, updated_us, message_count) "
            "VALUES (?1, ?2, ?2, ?3) ON CONFLICT (session_id) "
            "DO UPDATE SET updated_us = ?2, message_count = message_count + ?3",
            (name, time_us, messages),
        )
        return name, open_count

    async def file_end(self, session_id: str) -> int:
        """Tell where the last line ends that a row names, in bytes; under the lock only."""
        rows = await self._database.read(
            "SELECT file_end FROM completion_sessions WHERE session_id = ?", (session_id,)
        )
        return int(rows[0]["file_end"]) if rows else 0

    def answered_in(self, tx: Transaction, session_id: str, *, file_end: int, time_us: int) -> None:
        """Note a line more."""
        tx.execute(
            "UPDATE completion_sessions SET file_end = ?, updated_us = ?, message_count = message_count + 1 "
            "WHERE session_id = ?",
            (file_end, time_us, session_id),
        )

    @staticmethod
    def _free_name(tx: Transaction) -> str:
        names = candidates()
        for name in names[:-1]:
            known = tx.execute("SELECT 1 FROM completion_sessions WHERE session_id = ?", (name,)).fetchone()
            if known is None:
                return name
        return names[-1]
