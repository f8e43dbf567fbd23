"""What was said is found again, and written into files."""

import asyncio
import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.testing import RunningDaemon, running_daemon

SETTINGS = {"plugins": {"completion": {"provider": "mock", "mock": {"answer": "It REPLAYS what happened."}}}}


async def said(ksi: RunningDaemon, prompt: str, session_id: str) -> None:
    async with ksi.connect() as wire:
        data = {"prompt": prompt, "session_id": session_id}
        wire.send({"event": "completion:stream", "data": data, "id": "ask"})
        while (await wire.receive())["type"] == "item":
            pass


def content(path: str) -> tuple[str, int]:
    """Read a file and its permissions."""
    return Path(path).read_text(), stat.S_IMODE(Path(path).stat().st_mode)


async def found(ksi: RunningDaemon, query: str, **asked: Any) -> list[tuple[str, str]]:
    reply = await ksi.call_raw("conversation:search", {"query": query, **asked})
    return [(hit["session_id"], hit["role"]) for hit in reply["results"]]


async def test_what_was_said_is_found_in_any_case_the_latest_session_first() -> None:
    async with running_daemon(settings=SETTINGS) as ksi:
        await said(ksi, "What is an event log?", "s1")
        await said(ksi, "Replays what?", "s2")
        assert await found(ksi, "replays") == [("s2", "user"), ("s2", "assistant"), ("s1", "assistant")]
        assert await found(ksi, "EVENT LOG") == [("s1", "user")]
        assert await found(ksi, "replays", roles=["user"]) == [("s2", "user")]
        assert await found(ksi, "replays", session_id="s1") == [("s1", "assistant")]
        assert await found(ksi, "nothing of the kind") == []


async def test_a_search_goes_on_where_it_stopped() -> None:
    async with running_daemon(settings=SETTINGS) as ksi:
        for number in range(3):
            await said(ksi, f"prompt {number}", f"s{number}")
        seen: list[str] = []
        reply: dict[str, Any] = {"next_offset": 0}
        while reply["next_offset"] is not None:
            asked = {"query": "replays", "limit": 1, "offset": reply["next_offset"]}
            reply = await ksi.call_raw("conversation:search", asked)
            seen += [hit["session_id"] for hit in reply["results"]]
        assert seen == ["s2", "s1", "s0"]


async def test_a_session_is_written_for_people_and_for_programs() -> None:
    async with running_daemon(settings=SETTINGS) as ksi:
        await said(ksi, "What is an event log?", "s1")
        written = await ksi.call_raw("conversation:export", {"session_id": "s1"})
        text, mode = content(written["export_path"])
        assert (written["filename"], written["message_count"]) == ("s1.md", 2)
        assert written["size_bytes"] == len(text)
        assert text.startswith("# s1\n\n## User, ")
        assert "\n\nWhat is an event log?\n\n## Assistant (mock/mock), " in text
        assert mode == 0o600
        written = await ksi.call_raw("conversation:export", {"session_id": "s1", "format": "json"})
        messages = json.loads(content(written["export_path"])[0])
        assert [message["role"] for message in messages] == ["user", "assistant"]


async def test_a_session_that_is_none_is_said() -> None:
    async with running_daemon(settings=SETTINGS) as ksi, ksi.connect() as wire:
        await said(ksi, "hello", "s1")
        for event, data in (("search", {"query": "a", "session_id": "s2"}), ("export", {"session_id": "s2"})):
            refused = await wire.call(f"conversation:{event}", data)
            assert refused["error"]["code"] == "NOT_FOUND"


async def test_a_folder_that_cannot_be_written_is_said() -> None:
    async with running_daemon(settings=SETTINGS) as ksi, ksi.connect() as wire:
        await said(ksi, "hello", "s1")
        (ksi.paths.home / "exports").write_text("in the way")
        refused = await wire.call("conversation:export", {"session_id": "s1"})
        assert refused["error"]["code"] == "UNAVAILABLE"


async def test_a_hit_is_shown_behind_letters_that_fold_into_more() -> None:
    async with running_daemon(settings=SETTINGS) as ksi:
        await said(ksi, "ß" * 300 + " needle", "s1")
        reply = await ksi.call_raw("conversation:search", {"query": "NEEDLE"})
        assert "needle" in reply["results"][0]["excerpt"]


async def test_the_end_of_a_message_that_no_reply_has_room_for_is_found_and_written(tmp_path: Path) -> None:
    text = "x" * 3_000_000 + " the needle"
    (tmp_path / "prompt.txt").write_text(text)
    whole = {"delta_characters": 1_000_000}
    mock = {"provider": "mock", "mock": whole, "prompt_roots": [str(tmp_path)]}
    async with running_daemon(settings={"plugins": {"completion": mock}}) as ksi:
        asked = {"prompt_file": str(tmp_path / "prompt.txt"), "session_id": "s1"}
        await ksi.call_raw("completion:async", asked)
        await ksi.wait_emitted("completion:result")
        assert await found(ksi, "Needle") == [("s1", "user"), ("s1", "assistant")]
        written = await ksi.call_raw("conversation:export", {"session_id": "s1", "format": "json"})
        said = json.loads(content(written["export_path"])[0])
        assert [(message["content"] == text, message.get("error")) for message in said] == [(True, None)] * 2
        # A reply has no room for it, and says so.
        reply = await ksi.call_raw("conversation:get", {"session_id": "s1"})
        assert reply["messages"][0]["error"].startswith("cut: 1048574 of 3000011 characters")


async def test_a_session_is_written_by_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_bytes, threading.Barrier(4, timeout=60)

    def together(path: Path, data: bytes) -> int:
        size = write(path, data)
        if path.parent.name == "exports":
            written.wait()
        return size

    monkeypatch.setattr(Path, "write_bytes", together)
    async with running_daemon(settings=SETTINGS) as ksi:
        await said(ksi, "hello " * 10_000, "s1")
        async with asyncio.TaskGroup() as tasks:
            asked = {"session_id": "s1", "format": "json"}
            writing = [tasks.create_task(ksi.call_raw("conversation:export", asked)) for _ in range(4)]
        text, mode = content(writing[0].result()["export_path"])
        assert (len(json.loads(text)), mode) == (2, 0o600)
        assert [path.name for path in (ksi.paths.home / "exports").iterdir()] == ["s1.json"]
