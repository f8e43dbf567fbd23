"""Text that becomes a part of what sessions are asked: it waits on disk, and is taken with a prompt, once.

Three breakers keep programs that answer each other from doing so forever: how deep an injection is, how many
tokens a session is given in an hour, and how often in a minute.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from ksi_common.clock import Clock
from ksi_common.events.completion import Async
from ksi_common.events.injection import (
    Cleared,
    Inject,
    Injected,
    InjectionQueued,
    InjectionTaken,
    Item,
    Standing,
    Style,
    Waiting,
    WaitingList,
)
from ksi_completion.reservations import CHARACTERS_PER_TOKEN
from ksi_completion.rows import PRIORITIES, PRIORITY_NAMES, StoredMessage
from ksi_daemon.plugin import (
    Database,
    FailedPrecondition,
    ResourceExhausted,
    Transaction,
    format_time,
    new_id,
)

MINUTE_US: Final = 60_000_000
HOUR_US: Final = 60 * MINUTE_US
KEPT_US: Final = 30 * 24 * HOUR_US
"""How long what was taken is remembered."""
MAX_LISTED: Final = 1000
JOINED_BYTES: Final = 512 * 1024
"""JSON of what joins one prompt: an event has the double, for the prompt too. One injection always fits."""
DIRECT: Final = "injection-"
"""What the request of a direct injection is named by, before its id."""

_INSERT: Final = (
    "INSERT INTO injections (injection_id, session_id, mode, content, tokens, depth, position, style, "
    "priority, agent_id, model, provider, metadata, queued_us, expires_us) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_DEPTH: Final = "SELECT max(depth) FROM injections WHERE request_id = ?"
_RECENT: Final = (
    "SELECT coalesce(sum(tokens), 0), count(*) FILTER (WHERE queued_us > ?3) FROM injections "
    "WHERE session_id = ?1 AND queued_us > ?2"
)
_NEXT: Final = (
    "SELECT injection_id, content, position, style FROM injections WHERE session_id = ? "
    "AND request_id IS NULL AND mode = 'next' AND expires_us > ? ORDER BY priority DESC, number"
)
_DIRECT: Final = "SELECT injection_id FROM injections WHERE request_id IS NULL AND mode = 'direct'"
_FIND: Final = (
    "SELECT session_id, content, style, priority, agent_id, model, provider FROM injections "
    "WHERE injection_id = ?"
)
_TAKE: Final = "UPDATE injections SET request_id = ? WHERE injection_id = ? AND request_id IS NULL"
_FORGET: Final = (
    "DELETE FROM injections WHERE session_id = ?1 "
    "AND ((request_id IS NULL AND expires_us <= ?2) OR queued_us <= ?3)"
)
_LISTED: Final = (
    "SELECT injection_id, session_id, mode, position, style, priority, content, depth, queued_us, "
    "expires_us, metadata"
)
_WAITING: Final = (
    "FROM injections WHERE request_id IS NULL AND expires_us > ?2 AND (?1 IS NULL OR session_id = ?1)"
)
_DROP: Final = "DELETE FROM injections WHERE injection_id = ?"
_CLEAR: Final = "DELETE FROM injections WHERE request_id IS NULL AND (?1 IS NULL OR session_id = ?1)"


class InjectionSettings(BaseModel):
    """The table ``[plugins.completion.injection]``: what a session may be given. Beyond it is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    max_depth: int = Field(5, ge=1, description="How many injections may follow from each other.")
    max_tokens: int = Field(50_000, ge=1, description="Of one session, in an hour; estimated.")
    max_per_minute: int = Field(30, ge=1, description="Of one session.")


class Blocked(ResourceExhausted):
    """A breaker is open: too deep, too many tokens, too often."""


class Injections:
    """Keep the texts that wait for a prompt, or to be one."""

    def __init__(self, database: Database, clock: Clock, settings: InjectionSettings) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings
        self._blocked = 0

    def note_blocked(self, count: int = 1) -> None:
        """Count what breakers refused: outside of the unit, which may be run twice."""
        self._blocked += count

    def queue_in(self, tx: Transaction, asked: Inject | Item) -> Injected:
        """Put one on disk, in a unit of work; raise Blocked where a breaker is open."""
        now = self._clock.time_us()
        tx.execute(_FORGET, (asked.session_id, now, now - KEPT_US))
        tokens = -(-len(asked.content) // CHARACTERS_PER_TOKEN)
        depth = self._admitted_depth(tx, asked, tokens, now)
        injection_id = new_id()
        about = (injection_id, asked.session_id, asked.mode, asked.content, tokens, depth)
        how = (asked.position, asked.style, PRIORITIES[asked.priority])
        whom = (asked.agent_id, asked.model, asked.provider, orjson.dumps(asked.metadata).decode())
        tx.execute(_INSERT, (*about, *how, *whom, now, now + round(asked.ttl_s * 1e6)))
        named: dict[str, Any] = {
            "injection_id": injection_id,
            "session_id": asked.session_id,
            "mode": asked.mode,
            "depth": depth,
        }
        tx.tell(InjectionQueued(**named), stream=f"injection/{asked.session_id}")
        return Injected(**named, request_id=None if asked.mode == "next" else f"{DIRECT}{injection_id}")

    def join_in(
        self, tx: Transaction, session_id: str, request_id: str, prompt: Sequence[StoredMessage]
    ) -> Sequence[StoredMessage]:
        """Give a prompt with what waits for it, which waits no more; in the unit that accepts it.

        A prompt that is a blob is left as it is, and what waits waits for the next. So does what one event
        has no room for.
        """
        if prompt[-1].text is None:
            return prompt
        found = tx.execute(_NEXT, (session_id, self._clock.time_us())).fetchall()
        if not found:
            return prompt
        before: list[str] = []
        after: list[str] = []
        size = 0
        for injection_id, content, position, style in found:
            joining = _styled(content, style)
            size += len(orjson.dumps(joining))
            if size > JOINED_BYTES:
                break
            (before if position == "before_prompt" else after).append(joining)
            tx.execute(_TAKE, (request_id, injection_id))
            taken = InjectionTaken(injection_id=injection_id, session_id=session_id, request_id=request_id)
            tx.tell(taken, stream=f"injection/{session_id}")
        text = "\n\n".join([*before, prompt[-1].text, *after])
        return [*prompt[:-1], replace(prompt[-1], text=text)]

    async def unsent(self) -> Sequence[str]:
        """List the direct ones that have not become a completion yet."""
        return [row[0] for row in await self._database.read(_DIRECT)]

    async def request_of(self, injection_id: str) -> Async:
        """Give what a direct one asks, the same however often. Raises FailedPrecondition (``cleared``)."""
        found = await self._database.read(_FIND, (injection_id,))
        if not found:
            raise FailedPrecondition(
                f"injection {injection_id} was cleared before it was sent", reason="cleared"
            )
        session_id, content, style, priority, agent_id, model, provider = found[0]
        return Async(
            prompt=_styled(content, style),
            session_id=session_id,
            request_id=f"{DIRECT}{injection_id}",
            priority=PRIORITY_NAMES[priority],
            agent_id=agent_id,
            model=model,
            provider=provider,
            purpose="injection",
        )

    async def sent(self, injection_id: str) -> None:
        """Note that a direct one is a completion."""
        request_id = f"{DIRECT}{injection_id}"
        await self._database.write_apart(lambda tx: tx.execute(_TAKE, (request_id, injection_id)))

    async def drop(self, injection_id: str) -> None:
        """Forget a direct one that cannot become a completion."""
        await self._database.write_apart(lambda tx: tx.execute(_DROP, (injection_id,)))

    async def listed(self, session_id: str | None) -> WaitingList:
        """List what waits."""
        now = self._clock.time_us()
        order = "ORDER BY session_id, priority DESC, number LIMIT ?3"
        rows = await self._database.read(f"{_LISTED} {_WAITING} {order}", (session_id, now, MAX_LISTED))
        ((count,),) = await self._database.read(f"SELECT count(*) {_WAITING}", (session_id, now))
        return WaitingList(injections=[_waiting(row) for row in rows], count=count)

    def clear_in(self, tx: Transaction, session_id: str | None) -> Cleared:
        """Drop what waits, in a unit of work."""
        return Cleared(cleared=tx.execute(_CLEAR, (session_id,)).rowcount)

    async def status(self) -> Standing:
        """Tell how many wait, and what is allowed."""
        query = f"SELECT count(*), count(DISTINCT session_id) {_WAITING}"
        ((count, sessions),) = await self._database.read(query, (None, self._clock.time_us()))
        settings = self._settings
        return Standing(
            queued_count=count,
            sessions=sessions,
            blocked_count=self._blocked,
            max_depth=settings.max_depth,
            max_tokens=settings.max_tokens,
            max_per_minute=settings.max_per_minute,
        )

    def _admitted_depth(self, tx: Transaction, asked: Inject | Item, tokens: int, now: int) -> int:
        """Give how deep it is; raise Blocked where that, or what was before it, is too much."""
        settings, session_id = self._settings, asked.session_id
        (before,) = tx.execute(_DEPTH, (asked.after_request,)).fetchone()
        depth = (before or 0) + 1
        given, count = tx.execute(_RECENT, (session_id, now - HOUR_US, now - MINUTE_US)).fetchone()
        if depth > settings.max_depth:
            message = f"injection {depth} deep, after {asked.after_request}: {settings.max_depth} are allowed"
            raise Blocked(message, reason="injection_depth", retryable=False)
        if given + tokens > settings.max_tokens:
            message = f"session {session_id} was given {given} tokens of {settings.max_tokens} this hour"
            raise Blocked(message, reason="injection_tokens", retry_after_s=60.0)
        if count >= settings.max_per_minute:
            message = (
                f"session {session_id} was given {count} injections of {settings.max_per_minute} a minute"
            )
            raise Blocked(message, reason="injection_rate", retry_after_s=10.0)
        return depth


def _styled(content: str, style: Style) -> str:
    return content if style == "plain" else f"<system-reminder>\n{content}\n</system-reminder>"


def _waiting(row: Sequence[Any]) -> Waiting:
    injection_id, session_id, mode, position, style, priority, content, depth, queued, expires, metadata = row
    return Waiting(
        injection_id=injection_id,
        session_id=session_id,
        mode=mode,
        position=position,
        style=style,
        priority=PRIORITY_NAMES[priority],
        content=content,
        depth=depth,
        queued=format_time(queued),
        expires=format_time(expires),
        metadata=orjson.loads(metadata),
    )
