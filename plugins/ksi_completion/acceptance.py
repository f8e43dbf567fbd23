"""How a completion is accepted: prompt and row on disk, in one commit with the word that they are there."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from ksi_common.clock import Clock
from ksi_common.events.completion import Accepted, Asked, ChatMessage, CompletionAccepted, PromptMessage
from ksi_common.records import record
from ksi_completion.injections import Injections
from ksi_completion.jobs import insert_tools_in
from ksi_completion.prompts import Prompts
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.rows import ONE, PRIORITIES, TEXT, Row, StoredMessage
from ksi_completion.session_manager import SessionManager
from ksi_completion.structured import check_schema
from ksi_daemon.plugin import (
    AlreadyExists,
    Blobs,
    Database,
    FailedPrecondition,
    InvalidArgument,
    KSIError,
    StoredEvent,
    Transaction,
    Unit,
    new_id,
)

INLINE_BYTES: Final = 64 * 1024
"""A prompt that has more goes into blobs, all but its short messages."""
SHORT_BYTES: Final = 512
"""A thousand of them fit into an event."""

_INSERT: Final = (
    "INSERT INTO completions (request_id, session_id, state, digest, provider, model, max_tokens, timeout_s, "
    "agent_id, originator_agent_id, purpose, event_id, correlation_id, actor, hop, accepted_us, priority, "
    "workflow_id, has_tools, alias) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


Opened = Callable[[Row, int, Sequence[StoredMessage]], None]
"""Take up a completion that is on disk, so many before it in its session, and its prompt."""

_AHEAD: Final = (
    "SELECT count(*) FROM completions INDEXED BY completions_open "
    "WHERE session_id = ? AND sha256 IS NULL AND number < ?"
)


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
        injections: Injections,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._prompts = prompts
        self._providers = providers
        self._sessions = sessions
        self._injections = injections

    async def prepare(self, asked: Asked, *, opened: Opened) -> Unit[Accepted]:
        """Give the unit that puts a completion on disk, or finds the one that its request_id had before.

        ``opened`` is called for a new one, in the order of acceptance, before anyone hears of it. Raises what
        the parts raise; the unit raises AlreadyExists where that request_id asked something else.
        """
        try:
            provider, model = self._choose(asked)
            messages = await self._prompts.messages(asked)
        except KSIError:
            # What was accepted once is answered, though today it would not be.
            if (known := await self._known(asked.request_id)) is not None:
                return known
            raise
        if asked.response_schema is not None:
            await check_schema(asked.response_schema)
        if not messages[-1].content.strip():
            raise InvalidArgument("the last message is empty", reason="empty_prompt")
        if sum(len(message.content) for message in messages) <= INLINE_BYTES:
            digest, contents = _in_bytes(asked, messages)
        else:  # megabytes, for which the loop does not wait
            digest, contents = await asyncio.to_thread(_in_bytes, asked, messages)
        stored = await self._store(messages, contents)
        alias = self._providers.alias_of(asked.provider, asked.model)
        request_id = asked.request_id or new_id()
        entering = _Entering(asked, request_id, digest, provider, model, alias, stored)
        return partial(self._enter, entering, opened)

    def _enter(self, entering: "_Entering", opened: Opened, tx: Transaction) -> Accepted:
        asked, request_id, stored = entering.asked, entering.request_id, entering.stored
        if asked.request_id is not None:
            known = tx.execute(ONE, (request_id,)).fetchone()
            if known is not None:
                return _again(tx, Row.of(known), entering.digest)
        now = self._clock.time_us()
        session_id, ahead = self._sessions.enter_in(tx, asked.session_id, messages=len(stored), time_us=now)
        stored = self._injections.join_in(tx, session_id, request_id, stored)
        entering = replace(entering, stored=stored)
        told = tx.tell(entering.told(session_id), stream=f"completion/{request_id}")
        row = entering.insert_in(tx, session_id, told, time_us=now)
        tx.on_commit(lambda: opened(row, ahead, stored))
        return _accepted(row, ahead)

    def _choose(self, asked: Asked) -> tuple[str, str]:
        provider, model = self._providers.choose(asked.provider, asked.model)
        if asked.allowed_tools is not None and not self._providers.get(provider).restricts_tools:
            raise FailedPrecondition(
                f"provider {provider} cannot be held to allowed_tools",
                reason="cannot_restrict_tools",
                hint="name a provider that can, or leave allowed_tools out",
            )
        return provider, model

    async def _known(self, request_id: str | None) -> Unit[Accepted] | None:
        """Give what answers with the completion that a request had before; None where there is none."""
        if request_id is None or not await self._database.read(ONE, (request_id,)):
            return None

        def find(tx: Transaction) -> Accepted:
            return _again(tx, Row.of(tx.execute(ONE, (request_id,)).fetchone()), None)

        return find

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


def _again(tx: Transaction, row: Row, digest: str | None) -> Accepted:
    """Answer with what there is. ``digest``: None where nobody can tell any more what is asked."""
    if digest is not None and row.digest != digest:
        raise AlreadyExists(
            f"request {row.request_id} asked something else", reason="other_content", hint="choose another id"
        )
    if row.reference is not None:
        return _accepted(row, 0)
    (ahead,) = tx.execute(_AHEAD, (row.session_id, row.number)).fetchone()
    return _accepted(row, ahead)


@record
class _Entering:
    """What is to be put on disk of a request."""

    asked: Asked
    request_id: str
    digest: str
    provider: str
    model: str
    alias: str | None
    stored: Sequence[StoredMessage]

    def told(self, session_id: str) -> CompletionAccepted:
        asked = self.asked
        messages = [
            PromptMessage.model_construct(role=message.role, content=message.text, reference=message.blob)
            for message in self.stored
        ]
        return CompletionAccepted(
            request_id=self.request_id,
            session_id=session_id,
            provider=self.provider,
            model=self.model,
            messages=messages,
            max_tokens=asked.max_tokens,
            timeout_s=asked.timeout_s,
            priority=asked.priority,
            agent_id=asked.agent_id,
            workflow_id=asked.workflow_id,
            originator_agent_id=asked.originator_agent_id,
            purpose=asked.purpose,
        )

    def insert_in(self, tx: Transaction, session_id: str, told: StoredEvent, *, time_us: int) -> Row:
        asked, envelope = self.asked, tx.envelope
        has_tools = asked.allowed_tools is not None or bool(asked.tools or asked.response_schema)
        about: dict[str, Any] = {
            "request_id": self.request_id,
            "session_id": session_id,
            "state": "queued",
            "digest": self.digest,
            "provider": self.provider,
            "model": self.model,
            "max_tokens": asked.max_tokens,
            "timeout_s": asked.timeout_s,
            "agent_id": asked.agent_id,
            "originator_agent_id": asked.originator_agent_id,
            "purpose": asked.purpose,
            "event_id": envelope.event_id if envelope else told.event_id,
            "correlation_id": told.correlation_id,
            "actor": told.actor,
            "hop": envelope.hop if envelope else told.hop,
            "accepted_us": time_us,
            "priority": PRIORITIES[asked.priority],
            "workflow_id": asked.workflow_id,
            "has_tools": int(has_tools),
            "alias": self.alias,
        }
        number = tx.execute(_INSERT, tuple(about.values())).lastrowid or 0
        for position, message in enumerate(self.stored):
            message.insert_in(tx, self.request_id, position)
        if has_tools:
            tools: dict[str, Any] = {"allowed": asked.allowed_tools, "tools": asked.tools}
            insert_tools_in(tx, self.request_id, response_schema=asked.response_schema, **tools)
        return Row(number=number, **about)


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
    # Without what is as it ever was: a field that is added some day changes no name.
    digest.update(asked.model_dump_json(exclude=chosen, exclude_defaults=True).encode())
    contents = [message.content.encode() for message in messages]
    for message, content in zip(messages, contents, strict=True):
        digest.update(f"\n{message.role} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest(), contents
