"""What was said in the sessions: prompts are in rows and blobs, answers in the files that rows refer to."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import orjson
import structlog

from ksi_common.events.completion import ChatMessage, State
from ksi_common.events.conversation import Conversation, List, Listed, Messages, Said
from ksi_common.guessing import guess, nearest
from ksi_common.records import record
from ksi_completion.prompts import is_whole
from ksi_completion.responses import Responses, path_of
from ksi_completion.rows import Row, StoredMessage, messages_query
from ksi_daemon.plugin import Blobs, Database, DataLoss, NotFound, Reference, format_time, parse_time

T = TypeVar("T")

log = structlog.get_logger()

PAGE_BYTES: Final = 1024 * 1024
"""JSON of the messages of one reply: a frame has twice as much at most."""
HISTORY_MESSAGES: Final = 200
HISTORY_BYTES: Final = 1024 * 1024
MAX_ERROR: Final = 2000
"""Characters of an error that are shown."""

_END_OF_TIME_US: Final = 2**62
_LIST: Final = (
    "SELECT * FROM completion_sessions WHERE updated_us >= ? AND updated_us < ? "
    "ORDER BY {column} {direction}, session_id {direction} LIMIT ? OFFSET ?"
)
_COUNT: Final = "SELECT count(*) FROM completion_sessions WHERE updated_us >= ? AND updated_us < ?"
_COLUMNS: Final[Mapping[str, str]] = {
    "first_timestamp": "created_us",
    "last_timestamp": "updated_us",
    "message_count": "message_count",
    "session_id": "session_id",
}

_SESSION: Final = "SELECT message_count, forked_from FROM completion_sessions WHERE session_id = ?"
_RECENT: Final = "SELECT session_id FROM completion_sessions ORDER BY updated_us DESC LIMIT 1000"
_MESSAGE: Final = "SELECT * FROM completion_messages WHERE request_id = ? AND position = ?"
_ANSWER: Final = 1_000_000
"""The position of an answer: behind all messages of its prompt."""
_OWN: Final = "completions c WHERE c.session_id = ?1"
_INHERITED: Final = """(
    SELECT ?1 AS ancestor_id, 9e18 AS upto
    UNION ALL SELECT ancestor_id, upto FROM completion_lineage WHERE session_id = ?1
) l JOIN completions c ON c.session_id = l.ancestor_id AND c.number <= l.upto WHERE true"""
"""The completions of a session; of a forked one also those that it goes on from."""
_SAID: Final = """
    SELECT c.*, m.position FROM completion_messages m JOIN (SELECT c.* FROM {all}) c USING (request_id)
    UNION ALL SELECT c.*, ?2 FROM {all} AND c.sha256 IS NOT NULL
    ORDER BY number, position LIMIT ?3 OFFSET ?4
"""
_TURNS: Final = """
    SELECT c.*, count(*), sum(m.role != 'system'),
        sum(coalesce(m.blob_length, length(CAST(m.text AS BLOB))))
    FROM (SELECT c.* FROM {all} AND c.state = 'completed' ORDER BY c.number DESC LIMIT ?2) c
    JOIN completion_messages m USING (request_id) GROUP BY c.number ORDER BY c.number DESC
"""
_OUTCOMES: Final[Mapping[State, Literal["result", "failed", "cancelled"]]] = {
    "completed": "result",
    "failed": "failed",
    "cancelled": "cancelled",
}


@record
class Turn:
    """A prompt and its answer. ``is_whole``: it was a conversation of its own."""

    messages: Sequence[ChatMessage]
    is_whole: bool

    @property
    def size(self) -> int:
        """Give its characters."""
        return sum(len(message.content) for message in self.messages)


class Conversations:
    """Read the sessions."""

    def __init__(self, database: Database, responses: Responses, blobs: Blobs) -> None:
        self._database = database
        self._responses = responses
        self._blobs = blobs

    async def list(self, wanted: List) -> Listed:
        """List sessions, by pages."""
        active = (
            0 if wanted.start_date is None else parse_time(wanted.start_date),
            _END_OF_TIME_US if wanted.end_date is None else parse_time(wanted.end_date),
        )
        direction = "DESC" if wanted.reverse else "ASC"
        query = _LIST.format(column=_COLUMNS[wanted.sort_by], direction=direction)
        rows = await self._database.read(query, (*active, wanted.limit, wanted.offset))
        ((total,),) = await self._database.read(_COUNT, active)
        return Listed(
            conversations=[_conversation(row) for row in rows],
            total=total,
            offset=wanted.offset,
            limit=wanted.limit,
        )

    async def get(self, session_id: str, *, limit: int, offset: int, is_reply: bool = True) -> Messages:
        """Read prompts and answers, in the order in which they were asked.

        A page ends where it has ``PAGE_BYTES``. In a reply, a message that is larger than that is cut, and
        its ``error`` says so and where the whole is. So says the ``error`` of one whose bytes are damaged;
        the others are given all the same. Raises NotFound with the nearest names.
        """
        known = await self._database.read(_SESSION, (session_id,))
        if not known:
            raise await self._unknown(session_id)
        messages: list[Said] = []
        left = PAGE_BYTES
        total, forked_from = known[0]
        query = _SAID.format(all=_OWN if forked_from is None else _INHERITED)
        for *columns, position in await self._database.read(query, (session_id, _ANSWER, limit, offset)):
            said, place = await self._said(Row.of(columns), position)
            if is_reply:
                said = _fitted(said, place)
            left -= len(said.model_dump_json().encode())
            if messages and left < 0:
                break
            messages.append(said)
        return Messages(session_id=session_id, messages=messages, total=total, offset=offset, limit=limit)

    async def turns(self, session_id: str) -> Sequence[Turn]:
        """Give the turns that a next prompt goes on from, oldest first: those that have an answer.

        The last ``HISTORY_MESSAGES`` and ``HISTORY_BYTES`` at most, in whole turns. A request that brought
        a whole conversation, rather than one message, takes the place of what was before it. A turn whose
        bytes are damaged is left out.
        """
        turns: list[Turn] = []
        for row in await self._chosen(session_id):
            turn, damage = await _attempt(self._turn(row))
            if turn is None:
                log.warning(
                    "conversation.turn_left_out",
                    session_id=session_id,
                    request_id=row.request_id,
                    error=damage,
                )
            else:
                turns.append(turn)
        return turns[::-1]

    async def _said(self, row: Row, position: int) -> tuple[Said, str]:
        """Give a message, and where it is."""
        if position == _ANSWER:
            return await self._answer(row), f"{path_of(row.session_id)} from byte {row.offset}"
        (found,) = await self._database.read(_MESSAGE, (row.request_id, position))
        stored = StoredMessage.of(found)
        message, damage = await _attempt(stored.load(self._blobs))
        said = Said.model_validate(
            {
                "role": stored.role,
                "content": message.content if message else "",
                "timestamp": format_time(row.accepted_us),
                "request_id": row.request_id,
                "error": damage,
            }
        )
        return said, stored.blob.path if stored.blob else "the database"

    async def _answer(self, row: Row) -> Said:
        content, error = await self._words(row)
        return Said(
            role="assistant",
            content=content or "",
            timestamp=format_time(row.ended_us or row.accepted_us),
            request_id=row.request_id,
            outcome=_OUTCOMES[row.state],
            provider=row.provider,
            model=row.model,
            error=error and error[:MAX_ERROR],
        )

    async def _words(self, row: Row) -> tuple[str | None, str | None]:
        """Give an answer, or why it cannot be had."""
        if row.state != "completed":
            return None, row.failure.message if row.failure else row.state
        line, damage = await _attempt(self._responses.read(_reference(row)))
        return (line.text if line else None), damage

    async def _chosen(self, session_id: str) -> Sequence[Row]:
        """Choose the turns that fit, the newest first."""
        chosen: list[Row] = []
        messages = size = 0
        # A turn has a prompt and an answer at least.
        known = await self._database.read(_SESSION, (session_id,))
        query = _TURNS.format(all=_INHERITED if known and known[0][1] else _OWN)
        for found in await self._database.read(query, (session_id, HISTORY_MESSAGES // 2)):
            *columns, asked, said, asked_bytes = found
            row = Row.of(columns)
            messages += asked + 1
            size += asked_bytes + _reference(row).length
            if messages > HISTORY_MESSAGES or size > HISTORY_BYTES:
                break
            chosen.append(row)
            if said > 1:
                break
        return chosen

    async def _turn(self, row: Row) -> Turn:
        rows = await self._database.read(*messages_query(row.request_id))
        prompt = [await StoredMessage.of(found).load(self._blobs) for found in rows]
        line = await self._responses.read(_reference(row))
        answer = ChatMessage.model_construct(None, role="assistant", content=line.text)
        return Turn([*prompt, answer], is_whole=is_whole(prompt))

    async def _unknown(self, session_id: str) -> NotFound:
        names = [name for (name,) in await self._database.read(_RECENT)]
        near = nearest(session_id, names, limit=3)
        return NotFound(
            f"there is no session {session_id}",
            hint=guess(near, "conversation:list lists what there is"),
            reason="unknown_session",
            nearest=near,
        )


async def _attempt(reading: Awaitable[T]) -> tuple[T | None, str | None]:
    """Give what is read, or why its bytes cannot be had."""
    try:
        return await reading, None
    except DataLoss as loss:
        return None, loss.message


def _conversation(row: Any) -> Conversation:
    session_id, created_us, updated_us, file_end, message_count = row[:5]
    return Conversation(
        session_id=session_id,
        message_count=message_count,
        first_timestamp=format_time(created_us),
        last_timestamp=format_time(updated_us),
        size_bytes=file_end,
        path=path_of(session_id),
        forked_from=row["forked_from"],
    )


def _reference(row: Row) -> Reference:
    reference = row.reference
    assert reference is not None, f"completion {row.request_id} has ended, and no line"
    return reference


def _fitted(said: Said, place: str) -> Said:
    """Cut what is too large for one reply, and say where all of it is."""
    content = said.content
    while (size := len(orjson.dumps(content))) > PAGE_BYTES:
        content = content[: len(content) * PAGE_BYTES // size]
    if content == said.content:
        return said
    cut = f"cut: {len(content)} of {len(said.content)} characters are shown, all of it is in {place}"
    return said.model_copy(update={"content": content, "error": cut})
