"""Find what was said in the sessions, and write a session into a file."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final

import orjson

from ksi_common.events.conversation import List, Said
from ksi_common.events.conversation_reading import Export, Exported, Found, Hit, Search
from ksi_completion.conversations import Conversations
from ksi_daemon.plugin import Unavailable, new_id

FOLDER: Final = "exports"
PAGE: Final = 200
"""Messages that are read at once."""
SEARCH_S: Final = 5.0
"""How long one search looks; the next goes on where it was."""
AROUND: Final = 80
"""Characters that are shown on each side of a hit."""

LARGE: Final = 64 * 1024
"""Characters of a message beyond which it is searched in a thread."""

_ENDINGS: Final = {"markdown": "md", "json": "json"}
_SPEAKERS: Final = {"system": "System", "user": "User", "assistant": "Assistant"}


class ConversationReading:
    """Read whole sessions. ``home``: where the folder of exports is."""

    def __init__(self, conversations: Conversations, home: Path) -> None:
        self._conversations = conversations
        self._folder = home / FOLDER

    async def search(self, asked: Search) -> Found:
        """Look through sessions, the one that was active last first, until there are enough hits.

        A session that was begun is searched whole. Raises NotFound for one that is named, and is none.
        """
        names, total = await self._names(asked)
        deadline = asyncio.get_running_loop().time() + SEARCH_S
        hits: list[Hit] = []
        searched = 0
        for name in names:
            if len(hits) >= asked.limit or asyncio.get_running_loop().time() > deadline:
                break
            hits += [hit async for hit in self._hits(name, asked)]
            searched += 1
        at_end = asked.session_id is not None or asked.offset + searched >= total
        return Found(
            query=asked.query,
            results=hits[: asked.limit],
            total_conversations=total,
            searched_conversations=searched,
            next_offset=None if at_end else asked.offset + searched,
        )

    async def export(self, asked: Export) -> Exported:
        """Write a session; raise NotFound, or Unavailable where the disk takes nothing."""
        said = [message async for message in self._said(asked.session_id)]
        filename = f"{asked.session_id}.{_ENDINGS[asked.format]}"
        data = _markdown(asked.session_id, said) if asked.format == "markdown" else _json(said)
        path = self._folder / filename
        try:
            await asyncio.to_thread(_write, path, data)
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror}", reason="store_unavailable") from error
        return Exported(
            session_id=asked.session_id,
            export_path=str(path),
            filename=filename,
            format=asked.format,
            message_count=len(said),
            size_bytes=len(data),
        )

    async def _names(self, asked: Search) -> tuple[Sequence[str], int]:
        if asked.session_id is not None:
            return [asked.session_id], 1
        page = List.model_validate({"limit": 1000, "offset": asked.offset})
        listed = await self._conversations.list(page)
        return [one.session_id for one in listed.conversations], listed.total

    async def _hits(self, session_id: str, asked: Search) -> AsyncIterator[Hit]:
        wanted = asked.query.casefold()
        async for said in self._said(session_id):
            if said.role not in asked.roles:
                continue
            if len(said.content) > LARGE:  # for which the loop does not wait
                found = await asyncio.to_thread(_found, said.content, wanted)
            else:
                found = _found(said.content, wanted)
            if found is not None:
                excerpt, count = found
                yield Hit(
                    session_id=session_id,
                    request_id=said.request_id,
                    role=said.role,
                    timestamp=said.timestamp,
                    excerpt=excerpt,
                    count=count,
                )

    async def _said(self, session_id: str) -> AsyncIterator[Said]:
        offset = 0
        while True:
            page = await self._conversations.get(session_id, limit=PAGE, offset=offset, is_reply=False)
            for said in page.messages:
                yield said
            offset += len(page.messages)
            if not page.messages or offset >= page.total:
                return


def _found(text: str, wanted: str) -> tuple[str, int] | None:
    """Give what stands around a casefolded text where it is said first, and how often it is; None: never."""
    folded = text.casefold()
    if (at := folded.find(wanted)) < 0:
        return None
    if len(folded) != len(text):
        at = _place(text, at)
    return text[max(0, at - AROUND) : at + len(wanted) + AROUND][:200], folded.count(wanted)


def _place(text: str, folded: int) -> int:
    """Give the place in a text of one in its casefold, which is longer."""
    passed = 0
    for place, sign in enumerate(text):
        passed += len(sign.casefold())
        if passed > folded:
            return place
    return len(text)


def _markdown(session_id: str, said: Sequence[Said]) -> bytes:
    return ("\n\n".join([f"# {session_id}", *_sections(said)]) + "\n").encode()


def _sections(said: Sequence[Said]) -> Iterator[str]:
    for message in said:
        who = _SPEAKERS[message.role]
        by = f" ({message.provider}/{message.model})" if message.provider else ""
        yield f"## {who}{by}, {message.timestamp}"
        yield message.content if message.error is None else f"*{message.error}*\n\n{message.content}".strip()


def _json(said: Sequence[Said]) -> bytes:
    messages = [message.model_dump(mode="json", exclude_none=True) for message in said]
    return orjson.dumps(messages, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _write(path: Path, data: bytes) -> None:
    """Put a file in the place of another, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{new_id()}")  # several may write the same session at once
    beside.touch(mode=0o600)
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
