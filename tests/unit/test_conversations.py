"""Conversations are read from the rows and files that completions leave, page by page."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from ksi_common.errors import NotFound
from ksi_common.events.completion import ChatMessage, Failure, Proof
from ksi_common.events.conversation import List, Messages, Said
from ksi_completion import conversations as module
from ksi_completion.conversations import PAGE_BYTES, Conversations
from ksi_completion.responses import Line, Responses, Written
from ksi_completion.rows import StoredMessage
from ksi_daemon.blobs import FileBlobs
from ksi_daemon.database import Database, Transaction
from ksi_daemon.database.migrations import scripts
from ksi_daemon.testing import FakeClock

READABLE = ("blobs", "logs/responses")
START = "2023-11-14T22:13:20.000000Z"
"""What FakeClock says at first."""


@dataclass
class Desk:
    """Completions as the service leaves them: rows, blobs and lines; each takes a second."""

    database: Database
    blobs: FileBlobs
    responses: Responses
    clock: FakeClock = field(default_factory=FakeClock)
    asked: int = 0

    async def ask(self, session: str, *prompt: str | ChatMessage) -> str:
        """Accept a completion; give its request_id. Texts over 100 characters go into blobs."""
        self.asked += 1
        request_id = f"r{self.asked}"
        messages = [each if isinstance(each, ChatMessage) else said("user", each) for each in prompt]
        stored = [await self._stored(message) for message in messages]
        now = self._tick()

        def accept(tx: Transaction) -> None:
            tx.execute(
                "INSERT INTO completion_sessions "
                "(session_id, created_us, updated_us, file_end, message_count) VALUES (?1, ?2, ?2, 0, ?3) "
                "ON CONFLICT (session_id) DO UPDATE SET updated_us = ?2, message_count = message_count + ?3",
                (session, now, len(stored)),
            )
            tx.execute(
                "INSERT INTO completions (request_id, session_id, state, digest, provider, model, timeout_s, "
                "event_id, correlation_id, actor, hop, accepted_us) "
                "VALUES (?, ?, 'queued', '', 'embedded', 'small', 300, '', '', '', 0, ?)",
                (request_id, session, now),
            )
            for position, message in enumerate(stored):
                message.insert_in(tx, request_id, position)

        await self.database.write(accept)
        return request_id

    async def end(self, session: str, request_id: str, state: str, **how: Any) -> Written:
        """End a completion with a line."""
        rows = await self.database.read(
            "SELECT file_end FROM completion_sessions WHERE session_id = ?", (session,)
        )
        line = Line(
            request_id=request_id,
            session_id=session,
            provider="embedded",
            timestamp=START,
            duration_ms=1,
            outcome="result" if state == "completed" else state,  # type: ignore[arg-type]  # a word for each
            **how,
        )
        written = await self.responses.store(session, line, at=rows[0][0])
        reference, now = written.reference, self._tick()
        failure = how.get("error")
        failed = (failure.reason, failure.message, 0) if failure else (None, None, None)

        def finish(tx: Transaction) -> None:
            tx.before_commit(reference.path, written.sync)
            tx.execute(
                "UPDATE completions SET state = ?, ended_us = ?, failure_reason = ?, failure_message = ?, "
                "failure_retryable = ?, offset = ?, length = ?, sha256 = ? WHERE request_id = ?",
                (state, now, *failed, reference.offset, reference.length, reference.sha256, request_id),
            )
            tx.execute(
                "UPDATE completion_sessions SET updated_us = ?, file_end = ?, "
                "message_count = message_count + 1 WHERE session_id = ?",
                (now, written.end, session),
            )

        await self.database.write(finish)
        return written

    async def talk(self, session: str, *pairs: tuple[str, str]) -> list[str]:
        """Have prompts answered, one after another."""
        asked = []
        for prompt, answer in pairs:
            asked.append(await self.ask(session, prompt))
            await self.end(session, asked[-1], "completed", response={"result": answer})
        return asked

    async def _stored(self, message: ChatMessage) -> StoredMessage:
        if len(message.content) <= 100:
            return StoredMessage(message.role, message.content, None)
        blob = await self.blobs.put(message.content.encode(), media="text/plain;charset=utf-8")
        return StoredMessage(message.role, None, blob)

    def _tick(self) -> int:
        self.clock.advance(1)
        return self.clock.time_us()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(
        tmp_path / "db" / "ksi.db",
        backups=tmp_path / "backups",
        clock=FakeClock(),
        published=lambda events, head: None,
        failed=lambda error: None,
    )
    async with database:
        database.migrate("ksi_completion", scripts("ksi_completion"))
        database.start()
        yield database


@pytest.fixture
async def desk(tmp_path: Path, database: Database) -> AsyncIterator[Desk]:
    blobs = FileBlobs(tmp_path, readable=READABLE)
    await blobs.prepare()
    async with Responses(tmp_path, blobs) as responses:
        yield Desk(database, blobs, responses)


@pytest.fixture
def conversations(desk: Desk) -> Conversations:
    return Conversations(desk.database, desk.responses, desk.blobs)


def said(role: Any, content: str) -> ChatMessage:
    return ChatMessage.model_construct(role=role, content=content)


async def read(
    conversations: Conversations, session: str = "s", *, limit: int = 1000, offset: int = 0
) -> Messages:
    return await conversations.get(session, limit=limit, offset=offset)


def words(messages: Sequence[Said | ChatMessage]) -> list[tuple[str, str]]:
    return [(each.role, each.content) for each in messages]


async def history(conversations: Conversations, session: str) -> list[ChatMessage]:
    """Give what is said in the turns of a session that its next prompt goes on from."""
    return [message for turn in await conversations.turns(session) for message in turn.messages]


async def names(conversations: Conversations, **wanted: Any) -> list[str]:
    return [each.session_id for each in (await conversations.list(List(**wanted))).conversations]


async def test_a_conversation_is_listed_with_what_it_has(
    desk: Desk, conversations: Conversations, tmp_path: Path
) -> None:
    """The first KSI counted no message in any file that it wrote."""
    await desk.talk("s", ("Hi", "Hello"), ("And?", "Bye"))
    await desk.ask("s", "still open")
    listed = await conversations.list(List())
    assert (listed.total, listed.offset, listed.limit) == (1, 0, 100)
    (found,) = listed.conversations
    assert found.session_id == "s"
    assert found.message_count == (await read(conversations)).total == 5
    assert found.path == "logs/responses/s.jsonl"
    assert found.size_bytes == (tmp_path / found.path).stat().st_size
    assert (found.first_timestamp, found.last_timestamp) == (
        "2023-11-14T22:13:21.000000Z",
        "2023-11-14T22:13:25.000000Z",
    )


async def test_the_list_is_sorted_as_asked(desk: Desk, conversations: Conversations) -> None:
    await desk.talk("b", ("1", "2"))
    await desk.talk("a", ("1", "2"), ("3", "4"))
    await desk.talk("c", ("1", "2"), ("3", "4"), ("5", "6"))
    await desk.talk("b", ("3", "4"), ("5", "6"), ("7", "8"))
    assert await names(conversations) == ["b", "c", "a"]
    assert await names(conversations, reverse=False) == ["a", "c", "b"]
    assert await names(conversations, sort_by="first_timestamp") == ["c", "a", "b"]
    assert await names(conversations, sort_by="message_count") == ["b", "c", "a"]
    assert await names(conversations, sort_by="session_id", reverse=False) == ["a", "b", "c"]


async def test_the_list_has_pages(desk: Desk, conversations: Conversations) -> None:
    for session in "abcde":
        await desk.talk(session, ("same", "same"))
    pages = [
        await conversations.list(List(sort_by="message_count", reverse=False, limit=2, offset=offset))
        for offset in (0, 2, 4, 6)
    ]
    assert [[each.session_id for each in page.conversations] for page in pages] == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
        [],
    ]
    assert {page.total for page in pages} == {5}
    assert await names(conversations, sort_by="message_count") == list("edcba")


async def test_the_list_is_of_those_that_were_active_between_two_times(
    desk: Desk, conversations: Conversations
) -> None:
    for session in "abc":
        await desk.talk(session, ("x", "y"))
    listed = (await conversations.list(List())).conversations
    last = {each.session_id: each.last_timestamp for each in listed}
    assert await names(conversations, start_date=last["b"]) == ["c", "b"]
    assert await names(conversations, end_date=last["b"]) == ["a"]
    found = await conversations.list(List(start_date=last["b"], end_date="2023-11-14T23:13:26+01:00"))
    assert ([each.session_id for each in found.conversations], found.total) == (["b"], 1)


async def test_nothing_was_said_where_nobody_asked(conversations: Conversations) -> None:
    listed = await conversations.list(List())
    assert (listed.conversations, listed.total) == ([], 0)


async def test_prompts_and_answers_come_in_the_order_asked(desk: Desk, conversations: Conversations) -> None:
    """Also where the second prompt was there before the first answer, and whatever other sessions say."""
    first = await desk.ask("s", "1?")
    second = await desk.ask("s", "2?")
    await desk.talk("other", ("Hi", "Hello"))
    await desk.end("s", first, "completed", response={"result": "1!"})
    await desk.end("s", second, "completed", response={"choices": [{"message": {"content": "2!"}}]})
    found = await read(conversations)
    assert words(found.messages) == [("user", "1?"), ("assistant", "1!"), ("user", "2?"), ("assistant", "2!")]
    assert (found.session_id, found.total, found.offset, found.limit) == ("s", 4, 0, 1000)
    asked, answered = found.messages[:2]
    assert asked == Said(role="user", content="1?", timestamp="2023-11-14T22:13:21.000000Z", request_id=first)
    assert answered == Said(
        role="assistant",
        content="1!",
        timestamp="2023-11-14T22:13:25.000000Z",
        request_id=first,
        outcome="result",
        provider="embedded",
        model="small",
    )


async def test_a_request_that_is_open_has_a_prompt_only(desk: Desk, conversations: Conversations) -> None:
    await desk.ask("s", said("system", "Be brief"), "Hi")
    assert words((await read(conversations)).messages) == [("system", "Be brief"), ("user", "Hi")]


async def test_where_there_is_no_answer_the_outcome_says_why(
    desk: Desk, conversations: Conversations
) -> None:
    failed, cancelled = await desk.ask("s", "1?"), await desk.ask("s", "2?")
    failure = Failure(reason="stalled", message="no output for 60 s" + "!" * 5000)
    await desk.end("s", failed, "failed", error=failure)
    await desk.end("s", cancelled, "cancelled", proof=Proof(how="killed", elapsed_s=0.1))
    answers = (await read(conversations)).messages[1::2]
    assert [(each.content, each.outcome) for each in answers] == [("", "failed"), ("", "cancelled")]
    assert [each.error for each in answers] == [failure.message[: module.MAX_ERROR], "cancelled"]


async def test_long_prompts_are_read_from_their_blobs(desk: Desk, conversations: Conversations) -> None:
    await desk.ask("s", "long " * 100)
    assert words((await read(conversations)).messages) == [("user", "long " * 100)]


async def test_damaged_bytes_are_an_error_of_their_message_only(
    desk: Desk, conversations: Conversations, tmp_path: Path
) -> None:
    await desk.talk("s", ("long " * 100, "1!"), ("2?", "2!"), ("3?", "3!"))
    (blob,) = (path for path in (tmp_path / "blobs").glob("??/*"))
    blob.write_bytes(b"short" * 100)
    file = tmp_path / "logs/responses/s.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"2!"', b'"4!"'))
    found = (await read(conversations)).messages
    assert [each.content for each in found] == ["", "1!", "2?", "", "3?", "3!"]
    damaged = [each for each in found if each.error]
    assert [each.error for each in damaged] == [
        f"{blob.relative_to(tmp_path)} is not what was stored: its bytes have another hash",
        "logs/responses/s.jsonl is not what was stored: its bytes have another hash",
    ]
    assert damaged[1].outcome == "result"
    file.unlink()
    found = (await read(conversations)).messages
    assert found[1].error == "logs/responses/s.jsonl is missing"


async def test_an_unknown_session_is_told_with_those_that_it_may_be(
    desk: Desk, conversations: Conversations
) -> None:
    await desk.talk("brave-otter", ("x", "y"))
    with pytest.raises(NotFound) as near:
        await read(conversations, "brave-oter")
    assert near.value.details == {"reason": "unknown_session", "nearest": ["brave-otter"]}
    assert near.value.hint == "did you mean brave-otter?"
    with pytest.raises(NotFound) as far:
        await read(conversations, "x")
    assert far.value.hint == "conversation:list lists what there is"


async def test_a_conversation_has_pages(desk: Desk, conversations: Conversations) -> None:
    await desk.talk("s", ("1?", "1!"), ("2?", "2!"), ("3?", "3!"))
    pages = [await read(conversations, limit=4, offset=offset) for offset in (0, 4, 8)]
    assert [[each.content for each in page.messages] for page in pages] == [
        ["1?", "1!", "2?", "2!"],
        ["3?", "3!"],
        [],
    ]
    assert {page.total for page in pages} == {6}


async def test_a_page_ends_where_a_reply_is_full(desk: Desk, conversations: Conversations) -> None:
    third = "x" * (PAGE_BYTES // 3)
    await desk.talk("s", *[(f"{number}?", third) for number in range(4)])
    contents: list[str] = []
    while len(contents) < 8:
        page = await read(conversations, offset=len(contents))
        assert 0 < len(page.model_dump_json().encode()) < PAGE_BYTES + 1000
        contents += [each.content for each in page.messages]
    assert contents == ["0?", third, "1?", third, "2?", third, "3?", third]


@pytest.mark.parametrize("character", ["x", "\0", "é", "🦦", '"'])
async def test_a_message_that_is_larger_than_a_reply_is_cut_and_says_so(
    desk: Desk, conversations: Conversations, character: str
) -> None:
    large = character * (PAGE_BYTES + 100)
    request = await desk.ask("s", large)
    await desk.end("s", request, "completed", response={"result": large})
    for offset, place in ((0, "blobs/"), (1, "logs/responses/s.jsonl from byte 0")):
        page = await read(conversations, offset=offset)
        (cut,) = page.messages
        assert large.startswith(cut.content)
        assert PAGE_BYTES * 0.9 < len(orjson.dumps(cut.content)) <= PAGE_BYTES
        assert cut.error is not None
        assert cut.error.startswith(f"cut: {len(cut.content)} of {len(large)} characters are shown")
        assert place in cut.error
        assert len(page.model_dump_json().encode()) < PAGE_BYTES + 1000


async def test_the_history_is_what_was_answered_oldest_first(
    desk: Desk, conversations: Conversations
) -> None:
    await desk.talk("s", ("1?", "1!"))
    for state, how in (
        ("failed", {"error": Failure(reason="x", message="x")}),
        ("cancelled", {"proof": Proof(how="killed", elapsed_s=0.1)}),
    ):
        await desk.end("s", await desk.ask("s", state), state, **how)
    await desk.talk("other", ("Hi", "Hello"))
    last = await desk.ask("s", said("system", "Be brief"), "long " * 100)
    await desk.end("s", last, "completed", response={"result": "2!"})
    await desk.ask("s", "open")
    assert words(await history(conversations, "s")) == [
        ("user", "1?"),
        ("assistant", "1!"),
        ("system", "Be brief"),
        ("user", "long " * 100),
        ("assistant", "2!"),
    ]


async def test_a_session_that_is_new_has_no_history(conversations: Conversations) -> None:
    assert await history(conversations, "new") == []


async def test_a_whole_conversation_takes_the_place_of_what_was_before(
    desk: Desk, conversations: Conversations
) -> None:
    await desk.talk("s", ("1?", "1!"))
    brought = [said("user", "Hi"), said("assistant", "Hello"), said("user", "And?")]
    await desk.end("s", await desk.ask("s", *brought), "completed", response={"result": "Bye"})
    await desk.talk("s", ("2?", "2!"))
    told = await history(conversations, "s")
    assert [each.content for each in told] == ["Hi", "Hello", "And?", "Bye", "2?", "2!"]


async def test_a_history_has_a_limit_of_messages_in_whole_turns(
    desk: Desk, conversations: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HISTORY_MESSAGES", 6)
    await desk.talk("s", *[(f"{number}?", f"{number}!") for number in range(5)])
    assert [each.content for each in await history(conversations, "s")] == [
        "2?",
        "2!",
        "3?",
        "3!",
        "4?",
        "4!",
    ]
    last = await desk.ask("s", said("system", "Be brief"), "5?")
    await desk.end("s", last, "completed", response={"result": "5!"})
    assert [each.content for each in await history(conversations, "s")] == [
        "4?",
        "4!",
        "Be brief",
        "5?",
        "5!",
    ]


async def test_a_history_has_a_limit_of_bytes_in_whole_turns(
    desk: Desk, conversations: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of prompts in blobs, too, and of turns that are not large themselves."""
    monkeypatch.setattr(module, "HISTORY_BYTES", 3000)
    await desk.talk("s", ("é" * 500, "1!"), ("é" * 500, "2!"), ("3?", "x" * 500))
    assert [each.content[:2] for each in await history(conversations, "s")] == ["éé", "2!", "3?", "xx"]
    await desk.talk("s", ("x" * 3000, "4!"))
    assert await history(conversations, "s") == []


async def test_a_damaged_turn_is_left_out_of_the_history(
    desk: Desk, conversations: Conversations, tmp_path: Path
) -> None:
    await desk.talk("s", ("1?", "1!"), ("2?", "2!"), ("3?", "3!"))
    file = tmp_path / "logs/responses/s.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"2!"', b'"4!"'))
    assert [each.content for each in await history(conversations, "s")] == ["1?", "1!", "3?", "3!"]
