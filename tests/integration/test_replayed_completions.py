"""A program's talk with a model, recorded once and replayed: the same steps, without the model."""

from pathlib import Path
from typing import Any

from ksi_daemon.testing import RunningDaemon, running_daemon

from .conftest import LogFile


def table(**settings: Any) -> dict[str, Any]:
    return {"plugins": {"completion": {"provider": "replay", **settings}}}


async def talk(ksi: RunningDaemon) -> list[tuple[str, Any]]:
    """Hold a conversation of two turns, the second of which goes on from the first."""
    seen = []
    async with ksi.connect() as wire:
        for prompt in ("one two", "three"):
            data = {"prompt": prompt, "session_id": "talk"}
            wire.send({"event": "completion:stream", "data": data, "id": prompt})
            while (frame := await wire.receive())["type"] == "item":
                seen.append((frame["data"]["type"], frame["data"]["text"]))
    return seen


async def test_a_talk_is_replayed_as_it_was_recorded(tmp_path: Path) -> None:
    cassette = str(tmp_path / "talk.jsonl")
    recording = table(replay={"cassette": cassette, "record": "mock"}, mock={"delta_characters": 3})
    async with running_daemon(settings=recording) as ksi:
        first = await talk(ksi)
    async with running_daemon(settings=table(replay={"cassette": cassette})) as ksi:
        assert await talk(ksi) == first
    assert ("delta", "one two") in first
    assert ("result", "three") in first


async def test_a_request_that_is_not_on_the_cassette_fails_at_once_and_clearly(tmp_path: Path) -> None:
    cassette = str(tmp_path / "talk.jsonl")
    async with running_daemon(
        settings=table(replay={"cassette": cassette, "record": "mock"}, mock={})
    ) as ksi:
        await talk(ksi)
    async with running_daemon(settings=table(replay={"cassette": cassette})) as ksi, ksi.connect() as wire:
        wire.send({"event": "completion:stream", "data": {"prompt": "something else"}, "id": "ask"})
        step: dict[str, Any] = {}
        while (frame := await wire.receive())["type"] == "item":
            step = frame["data"]
        assert step["type"] == "failed"
        assert step["attempt"] == 1
        assert step["failure"]["reason"] == "not_on_cassette"
        assert "nearest prompt" in step["failure"]["message"]


async def test_a_setting_that_records_nobody_is_refused_by_name(log_file: LogFile) -> None:
    replay = {"cassette": "/nowhere/talk.jsonl", "record": "nobody"}
    with log_file.written():
        async with running_daemon(settings=table(replay=replay)):
            pass
    (refused,) = log_file.lines("plugin.refused")
    assert 'replay.record: there is no provider "nobody"' in refused["error"]
