"""How a completion is accepted: prompt and row on disk, in one commit with the word that they are there."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from ksi_common.clock import Clock
from ksi_common.events.completion import Accepted, Asked, ChatMessage, CompletionAccepted, PromptMessage
from ksi_completion.prompts import Prompts
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.rows import ONE, TEXT, Row, StoredMessage
from ksi_completion.session_manager import SessionManager
from ksi_daemon.plugin import AlreadyExists, Blobs, Database, InvalidArgument, Transaction, new_id

INLINE_BYTES: Final = 64 * 1024
"""A prompt that has more goes into blobs, all but its short messages."""
SHORT_BYTES: Final = 512
"""A thousand of them fit into an event."""

_INSERT: Final = (
    "INSERT INTO completions (request_id, session_id, state, digest, provider, model, max_tokens, timeout_s, "
    "agent_id, originator_agent_id, purpose, event_id, correlation_id, actor, hop, accepted_us) "
    "VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


Opened = Callable[[Row, int], None]
"""Take up a completion that is on disk, so many before it in its session."""


class Acceptance:
    """Take completions in."""

    def __init__(
        self,
        *,
        database: Database,
        blobs: Blobs,
        clock: Clock,
        prompts: Prompts,
        providers: ProviderManager,
        sessions: SessionManager,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._prompts = prompts
        self._providers = providers
        self._sessions = sessions

    async def accept(self, asked: Asked, *, opened: Opened) -> Accepted:
        """Put a completion on disk; the one that there is where the same request_id asked the same before.

        ``opened`` is called for a new one, in the order of acceptance, before anyone hears of it. Raises what
        the parts raise, and AlreadyExists where that request_id asked something else.
        """
        provider, model = self._providers.choose(asked.provider, asked.model)
        messages = await self._prompts.messages(asked)
        if not messages[-1].content.strip():
            raise InvalidArgument("the last message is empty", reason="empty_prompt")
        if sum(len(message.content) for message in messages) <= INLINE_BYTES:
            digest, contents = _in_bytes(asked, messages)
        else:  # megabytes, for which the loop does not wait
            digest, contents = await asyncio.to_thread(_in_bytes, asked, messages)
        stored = await self._store(messages, contents)
        request_id = asked.request_id or new_id()

        def take(tx: Transaction) -> Accepted:
            known = tx.execute(ONE, (request_id,)).fetchone()
            if known is not None:
                return _again(tx, Row.of(known), digest)
            now = self._clock.time_us()
            session_id, ahead = self._sessions.enter_in(
                tx, asked.session_id, messages=len(stored), time_us=now
            )
            told = tx.tell(
                _told(asked, request_id, session_id, (provider, model), stored),
                stream=f"completion/{request_id}",
            )
            envelope = tx.envelope
            tx.execute(
                _INSERT,
                (
                    request_id,
                    session_id,
                    digest,
                    provider,
                    model,
                    asked.max_tokens,
                    asked.timeout_s,
                    asked.agent_id,
                    asked.originator_agent_id,
                    asked.purpose,
                    envelope.event_id if envelope else told.event_id,
                    told.correlation_id,
                    told.actor,
                    envelope.hop if envelope else told.hop,
                    now,
                ),
            )
            for position, message in enumerate(stored):
                message.insert_in(tx, request_id, position)
            row = Row.of(tx.execute(ONE, (request_id,)).fetchone())
            tx.on_commit(lambda: opened(row, ahead))
            return _accepted(row, ahead)

        # The unit gives the reply: under an idempotency key it commits with the completion.
        return await self._database.write(take)

    async def _store(self, messages: Sequence[ChatMessage], contents: Sequence[bytes]) -> list[StoredMessage]:
        inline = INLINE_BYTES if sum(map(len, contents)) <= INLINE_BYTES else SHORT_BYTES
        stored = []
        for message, content in zip(messages, contents, strict=True):
            if len(content) <= inline:
                stored.append(StoredMessage(message.role, message.content, None))
            else:
                blob = await self._blobs.put(content, media=TEXT)
                stored.append(StoredMessage(message.role, None, blob))
        return stored


def _again(tx: Transaction, row: Row, digest: str) -> Accepted:
    if row.digest != digest:
        raise AlreadyExists(
            f"request {row.request_id} asked something else", reason="other_content", hint="choose another id"
        )
    if row.reference is not None:
        return _accepted(row, 0)
    (ahead,) = tx.execute(
        "SELECT count(*) FROM completions WHERE session_id = ? AND sha256 IS NULL AND number < ?",
        (row.session_id, row.number),
    ).fetchone()
    return _accepted(row, ahead)


def _accepted(row: Row, ahead: int) -> Accepted:
    return Accepted(
        request_id=row.request_id,
        session_id=row.session_id,
        status=row.state,
        position=ahead,
        provider=row.provider,
        model=row.model,
    )


def _in_bytes(asked: Asked, messages: Sequence[ChatMessage]) -> tuple[str, Sequence[bytes]]:
    """Give a name of what was asked, and the contents; of a prompt_file the content counts, not the path."""
    digest = hashlib.sha256()
    chosen = {"request_id", "prompt", "prompt_file", "messages", "system"}
    digest.update(asked.model_dump_json(exclude=chosen).encode())
    contents = [message.content.encode() for message in messages]
    for message, content in zip(messages, contents, strict=True):
        digest.update(f"\n{message.role} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest(), contents


def _told(
    asked: Asked, request_id: str, session_id: str, by: tuple[str, str], stored: Sequence[StoredMessage]
) -> CompletionAccepted:
    return CompletionAccepted(
        request_id=request_id,
        session_id=session_id,
        provider=by[0],
        model=by[1],
        messages=[
            PromptMessage.model_validate(
                {"role": message.role, "content": message.text, "reference": message.blob}
            )
            for message in stored
        ],
        max_tokens=asked.max_tokens,
        timeout_s=asked.timeout_s,
        agent_id=asked.agent_id,
        originator_agent_id=asked.originator_agent_id,
        purpose=asked.purpose,
    )
