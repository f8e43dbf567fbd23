"""What a provider is asked: the turns of a session and the prompt, from memory where they are at hand."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from ksi_common.events.completion import ChatMessage
from ksi_completion.conversations import HISTORY_BYTES, HISTORY_MESSAGES, Conversations, Turn
from ksi_completion.prompts import is_whole
from ksi_completion.providers.interface import Job, size_of
from ksi_completion.rows import Row, StoredMessage, messages_query
from ksi_completion.session_manager import Session
from ksi_daemon.plugin import Blobs, Database, Transaction

PROMPT_BYTES: Final = 8 * 1024 * 1024
"""Of prompts that wait and are kept in memory; the others are read when their turn comes."""
TURN_BYTES: Final = 32 * 1024 * 1024
"""Of turns that are kept in memory; those of the sessions that were silent longest are read again."""

_TOOLS: Final = "SELECT allowed, tools, response_schema FROM completion_tools WHERE request_id = ?"
_INSERT_TOOLS: Final = "INSERT INTO completion_tools VALUES (?, ?, ?, ?)"


class History:
    """The last turns of a session, as many as a provider is told."""

    __slots__ = ("_said", "_systems", "_turns", "size")

    def __init__(self, turns: Iterable[Turn] = ()) -> None:
        self._turns: deque[Turn] = deque()
        self._said: list[ChatMessage] = []
        self._systems: list[ChatMessage] = []
        """Of these, the words of the system."""
        self.size = 0
        """Their characters."""
        for turn in turns:
            self.add(turn)

    def __len__(self) -> int:
        """Count its messages."""
        return len(self._said)

    def add(self, turn: Turn) -> None:
        """Note a turn that has its answer; the oldest make room for it."""
        if turn.is_whole:
            self._turns.clear()
            self._said.clear()
            self._systems.clear()
            self.size = 0
        self._turns.append(turn)
        self._said += turn.messages
        self._systems += _of_system(turn.messages)
        self.size += turn.size
        while self._turns and (len(self._said) > HISTORY_MESSAGES or self.size > HISTORY_BYTES):
            oldest = self._turns.popleft()
            del self._said[: len(oldest.messages)]
            del self._systems[: len(_of_system(oldest.messages))]
            self.size -= oldest.size

    def before(self, prompt: Sequence[ChatMessage], *, is_known: bool = False) -> list[ChatMessage]:
        """Give what a model is told: the last word of the system, the turns in order, the prompt.

        A prompt of several messages is a whole conversation, and takes the place of what was said before.
        ``is_known``: the provider has the turns; what it is told before them, it is told each time.
        """
        if is_whole(prompt):
            said, systems = [*prompt], _of_system(prompt)
        else:
            said = [*(self._systems if is_known else self._said), *prompt]
            systems = self._systems + _of_system(prompt)
        return [systems[-1], *(word for word in said if word.role != "system")] if systems else said


class Jobs:
    """Make jobs of rows."""

    def __init__(self, database: Database, blobs: Blobs, conversations: Conversations) -> None:
        self._database = database
        self._blobs = blobs
        self._conversations = conversations
        self._prompts: dict[str, Sequence[ChatMessage]] = {}
        self._prompt_size = 0
        self._recent: dict[str, History] = {}
        """The one that was used last is the last."""
        self._recent_size = 0

    def remember(self, request_id: str, stored: Sequence[StoredMessage]) -> None:
        """Keep a prompt for its turn, where there is room for it."""
        if all(message.blob is None for message in stored):
            size = sum(len(message.text or "") for message in stored)
            if self._prompt_size + size <= PROMPT_BYTES:
                self._prompt_size += size
                self._prompts[request_id] = [
                    ChatMessage.model_construct(None, role=message.role, content=message.text or "")
                    for message in stored
                ]

    async def make(
        self, row: Row, session: Session, *, attempt: int, keeps_sessions: bool, left_s: float
    ) -> Job:
        """Give what the provider is asked; a session that it keeps itself is not told again.

        ``left_s``: the seconds that it may take.
        """
        prompt = await self._prompt(row.request_id)
        goes_on = keeps_sessions and session.is_bound_to(row.provider, row.model) and not is_whole(prompt)
        history = await self._history(row.session_id)
        messages = history.before(prompt, is_known=goes_on)
        is_all = len(messages) == len(history) + len(prompt)  # nothing said before was left out
        return Job(
            row.request_id,
            row.session_id,
            row.model,
            messages,
            counted=history.size + size_of(prompt) if is_all else None,
            attempt=attempt,
            max_tokens=row.max_tokens,
            provider_session=session.provider_session if goes_on else None,
            resume_at=session.resume_at if goes_on else None,
            agent_id=row.agent_id,
            timeout_s=left_s,
            **(await self._tools(row.request_id) if row.has_tools else {}),
        )

    def wait(self, request_id: str) -> None:
        """Keep a prompt for another turn only where there is room for it."""
        if self._prompt_size > PROMPT_BYTES:
            prompt = self._prompts.pop(request_id, ())
            self._prompt_size -= size_of(prompt)

    def ended(self, request_id: str, session_id: str, answer: str | None) -> None:
        """Let go of a prompt; with its answer it is a turn of the session."""
        prompt = self._prompts.pop(request_id, None)
        if prompt is not None:
            self._prompt_size -= size_of(prompt)
        if answer is None:
            return
        recent = self._recent.pop(session_id, None)
        if recent is not None and prompt is not None:  # else it is read again
            self._recent_size -= recent.size
            said = ChatMessage.model_construct(None, role="assistant", content=answer)
            recent.add(Turn([*prompt, said], is_whole=is_whole(prompt)))
            self._keep(session_id, recent)
        elif recent is not None:
            self._recent_size -= recent.size

    def forget(self, session_id: str) -> None:
        """Read the turns of a session again: they became more in another way."""
        recent = self._recent.pop(session_id, None)
        if recent is not None:
            self._recent_size -= recent.size

    async def _prompt(self, request_id: str) -> Sequence[ChatMessage]:
        known = self._prompts.get(request_id)
        if known is None:
            rows = await self._database.read(*messages_query(request_id))
            known = [await StoredMessage.of(message).load(self._blobs) for message in rows]
            self._prompts[request_id] = known
            self._prompt_size += size_of(known)
        return known

    async def _history(self, session_id: str) -> History:
        recent = self._recent.get(session_id)
        if recent is None:
            recent = History(await self._conversations.turns(session_id))
            self._keep(session_id, recent)
        return recent

    def _keep(self, session_id: str, recent: History) -> None:
        self._recent[session_id] = recent
        self._recent_size += recent.size
        while self._recent_size > TURN_BYTES and len(self._recent) > 1:
            self.forget(next(iter(self._recent)))

    async def _tools(self, request_id: str) -> Mapping[str, Any]:
        ((allowed, tools, schema),) = await self._database.read(_TOOLS, (request_id,))
        return {
            "allowed_tools": None if allowed is None else allowed.split(),
            "tools": orjson.loads(tools) if tools else (),
            "response_schema": orjson.loads(schema) if schema else None,
        }


def _of_system(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    return [message for message in messages if message.role == "system"]


def insert_tools_in(
    tx: Transaction,
    request_id: str,
    *,
    allowed: Sequence[str] | None,
    tools: Sequence[Any],
    response_schema: Mapping[str, Any] | None,
) -> None:
    """Write what a request says of tools and of the form of its answer."""
    tx.execute(
        _INSERT_TOOLS,
        (
            request_id,
            None if allowed is None else " ".join(allowed),
            orjson.dumps(tools).decode() if tools else None,
            orjson.dumps(response_schema).decode() if response_schema is not None else None,
        ),
    )
