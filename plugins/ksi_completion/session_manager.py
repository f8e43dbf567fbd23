"""Sessions: their names and rows, who answered last, and that only one at a time works on each."""

import asyncio
from dataclasses import replace
from typing import Final
from weakref import WeakValueDictionary

from ksi_common.records import record
from ksi_common.session_names import candidates
from ksi_daemon.plugin import (
    AlreadyExists,
    Database,
    Lease,
    Leases,
    NotFound,
    ResourceExhausted,
    Transaction,
    new_id,
)

RETRY_AFTER_S: Final = 2.0
REMEMBERED: Final = 10_000
"""Sessions of which it is kept in memory who answered last; the others are read again."""
LEASE_MARGIN_S: Final = 60.0
"""How much longer an attempt has the session than it may take."""

_ENTER: Final = (
    "INSERT INTO completion_sessions (session_id, created_us, updated_us, message_count) "
    "VALUES (?1, ?2, ?2, ?3) ON CONFLICT (session_id) "
    "DO UPDATE SET updated_us = ?2, message_count = message_count + ?3 "
    "RETURNING file_end, provider, model, provider_session, resume_at, forked_from, "
    "(SELECT count(*) FROM completions c INDEXED BY completions_open "
    "WHERE c.session_id = ?1 AND sha256 IS NULL)"
)
_FIND: Final = (
    "SELECT file_end, provider, model, provider_session, resume_at, forked_from FROM completion_sessions "
    "WHERE session_id = ?"
)
_ANSWERED: Final = (
    "UPDATE completion_sessions SET file_end = ?, provider = ?, model = ?, provider_session = ?, "
    "resume_at = ?, updated_us = ?, message_count = message_count + 1 WHERE session_id = ?"
)
_FORGET: Final = (
    "UPDATE completion_sessions SET provider_session = NULL, resume_at = NULL WHERE session_id = ?"
)
_FORK: Final = (
    "INSERT INTO completion_sessions "
    "(session_id, created_us, updated_us, message_count, provider, model, forked_from) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_LAST: Final = """
    SELECT c.session_id, c.number, c.request_id, c.provider, c.model FROM completions c JOIN (
        SELECT ?1 AS ancestor_id, 9e18 AS upto
        UNION ALL SELECT ancestor_id, upto FROM completion_lineage WHERE session_id = ?1
    ) l ON c.session_id = l.ancestor_id AND c.number <= l.upto
    WHERE c.state = 'completed' AND (?2 IS NULL OR c.request_id = ?2) ORDER BY c.number DESC LIMIT 1
"""
"""The last answer of a session, or that to one request, its own or inherited."""
_INHERIT: Final = (
    "INSERT INTO completion_lineage (session_id, ancestor_id, upto) "
    "SELECT ?1, ancestor_id, upto FROM completion_lineage WHERE session_id = ?2 UNION ALL SELECT ?1, ?2, ?3"
)
_MESSAGES: Final = """
    SELECT count(m.position) + count(DISTINCT c.number) FROM completion_lineage l
    JOIN completions c ON c.session_id = l.ancestor_id AND c.number <= l.upto AND c.sha256 IS NOT NULL
    JOIN completion_messages m USING (request_id) WHERE l.session_id = ?
"""


@record
class Session:
    """What a session goes on from: ``provider`` and ``model`` gave its last answer."""

    file_end: int = 0
    """Where the last line ends that a row names, in bytes."""
    provider: str | None = None
    model: str | None = None
    provider_session: str | None = None
    """That provider's own id of it, as its result had it."""
    resume_at: str | None = None
    """That provider's id of the last good turn."""
    forked_from: str | None = None

    def is_bound_to(self, provider: str, model: str) -> bool:
        """Tell whether this provider and model have the session as it is now."""
        return self.provider_session is not None and (self.provider, self.model) == (provider, model)

    def changes_with(self, provider: str, model: str) -> bool:
        """Tell whether an answer of theirs is one of another provider or model than the last."""
        return self.provider is not None and (self.provider, self.model) != (provider, model)


class SessionManager:
    """Know the sessions. ``session_queue``: how many open completions one may have."""

    def __init__(self, database: Database, leases: Leases, *, session_queue: int) -> None:
        self._database = database
        self._leases = leases
        self._session_queue = session_queue
        self._daemon = new_id()
        """Whose leases are ours: no other daemon's, of before, either."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._known: dict[str, Session] = {}

    def writing(self, session_id: str) -> asyncio.Lock:
        """Give the lock under which a session's file grows."""
        lock = self._locks.get(session_id)
        return self._locks.setdefault(session_id, asyncio.Lock()) if lock is None else lock

    async def find(self, session_id: str) -> Session:
        """Give what a session goes on from; raise NotFound."""
        known = self._known.get(session_id)
        if known is None:
            rows = await self._database.read(_FIND, (session_id,))
            if not rows:
                raise NotFound(f"there is no session {session_id}", reason="unknown_session")
            self._remember(session_id, Session(*rows[0]))
            known = self._known[session_id]
        return known

    def enter_in(
        self, tx: Transaction, session_id: str | None, *, messages: int, time_us: int
    ) -> tuple[str, int]:
        """Take a prompt of so many messages into a session, a new one where it is None.

        Gives the session's id and how many completions of it are open already. Raises ResourceExhausted.
        """
        name = session_id or self._free_name(tx)
        *columns, open_count = tx.execute(_ENTER, (name, time_us, messages)).fetchone()
        if open_count >= self._session_queue:
            raise ResourceExhausted(
                f"queue of session {name} is full ({open_count} of {self._session_queue})",
                reason="session_queue_full",
                retry_after_s=RETRY_AFTER_S,
            )
        found = Session(*columns)
        tx.on_commit(lambda: self._remember(name, found))
        return name, open_count

    def answered_in(self, tx: Transaction, session_id: str, session: Session, *, time_us: int) -> None:
        """Note a line more, and what the session goes on from now."""
        found = (session.file_end, session.provider, session.model)
        bound = (session.provider_session, session.resume_at)
        tx.execute(_ANSWERED, (*found, *bound, time_us, session_id))
        tx.on_commit(lambda: self._known.__setitem__(session_id, session))

    def forget_in(self, tx: Transaction, session_id: str) -> None:
        """Note that the provider no longer knows the session."""
        tx.execute(_FORGET, (session_id,))
        tx.on_commit(lambda: self._lose(session_id))

    def take_in(self, tx: Transaction, session_id: str, request_id: str, *, work_s: float) -> Lease:
        """Give the one who works on a session the right to it, in a unit; raise LeaseHeld."""
        owner = f"{self._daemon}/{request_id}"
        return self._leases.acquire_in(tx, _lease(session_id), owner, work_s + LEASE_MARGIN_S)

    def give_back_in(self, tx: Transaction, lease: Lease) -> None:
        """End the right, with what came of it, in a unit; raise LeaseLost where another has it meanwhile."""
        if not self._leases.release_in(tx, lease):
            self._leases.check_in(tx, lease)

    def revoke_in(self, tx: Transaction, session_id: str) -> None:
        """Take the right to a session from who is known to be gone, in a unit."""
        self._leases.revoke_in(tx, _lease(session_id))

    def fork_in(
        self, tx: Transaction, parent: str, name: str | None, *, after: str | None, time_us: int
    ) -> tuple[str, str, int]:
        """Make a session that goes on from the answer to ``after``, or the last one, of ``parent``.

        Gives its name, the request of that answer and how many messages it has. Raises NotFound,
        AlreadyExists.
        """
        last = tx.execute(_LAST, (parent, after)).fetchone()
        if last is None:
            raise NotFound(
                f"session {parent} has no answer" + (f" to {after}" if after else ""),
                reason="unknown_session" if after is None else "unknown_request",
            )
        child = name or self._free_name(tx)
        if tx.execute(_FIND, (child,)).fetchone() is not None:
            raise AlreadyExists(f"there is a session {child}", reason="session_exists")
        owner, number, request_id, provider, model = last
        tx.execute(_FORK, (child, time_us, time_us, 0, provider, model, parent))
        tx.execute(_INHERIT, (child, owner, number))
        (messages,) = tx.execute(_MESSAGES, (child,)).fetchone()
        tx.execute("UPDATE completion_sessions SET message_count = ? WHERE session_id = ?", (messages, child))
        return child, request_id, messages

    def _remember(self, session_id: str, session: Session) -> None:
        """Keep what a row says, where nothing is known: what is known was of a later commit."""
        if session_id not in self._known:
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[session_id] = session

    def _lose(self, session_id: str) -> None:
        known = self._known.get(session_id)
        if known is not None:
            self._known[session_id] = replace(known, provider_session=None, resume_at=None)

    @staticmethod
    def _free_name(tx: Transaction) -> str:
        names = candidates()
        for name in names[:-1]:
            known = tx.execute("SELECT 1 FROM completion_sessions WHERE session_id = ?", (name,)).fetchone()
            if known is None:
                return name
        return names[-1]


def _lease(session_id: str) -> str:
    return f"completion/session/{session_id}"
