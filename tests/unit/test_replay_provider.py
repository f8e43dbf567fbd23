"""The provider that says again what another one said, and the file that it has that from."""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from ksi_common.events.completion import ChatMessage
from ksi_completion.providers.interface import Answer, CompletionProvider, Job, ProviderFailure
from ksi_completion.providers.mock import MockProvider, MockSettings
from ksi_completion.providers.replay import ReplayProvider, ReplaySettings


def job(prompt: str, model: str = "mock", **fields: Any) -> Job:
    return Job("r", "s", model, [ChatMessage(role="user", content=prompt)], **fields)


async def opened(path: Path, recorded: CompletionProvider | None = None) -> ReplayProvider:
    provider = ReplayProvider(ReplaySettings(cassette=path), recorded)
    await provider.open()
    return provider


async def said(provider: ReplayProvider, asked: Job) -> tuple[Sequence[str], Answer]:
    generation = await provider.start(asked)
    return [piece async for piece in generation.deltas()], generation.answer


def mock(**settings: Any) -> MockProvider:
    return MockProvider(MockSettings.model_validate(settings))


async def test_what_was_recorded_is_said_again_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "cassettes" / "one.jsonl"
    first = await said(
        await opened(path, mock(delta_characters=3, usd_per_million_tokens=1)), job("a prompt")
    )
    player = await opened(path)
    assert player.missing() is None
    assert player.models[0] == "mock"
    assert await said(player, job("a prompt", attempt=3)) == first
    assert path.stat().st_mode & 0o777 == 0o600


async def test_the_same_request_is_answered_as_often_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    recorder = await opened(path, mock(outages={"mock": 1}))
    with pytest.raises(ProviderFailure):
        await said(recorder, job("again"))
    await said(recorder, job("again"))
    player = await opened(path)
    with pytest.raises(ProviderFailure) as caught:
        await said(player, job("again"))
    assert (caught.value.reason, caught.value.kind) == ("outage", "transient")
    assert (await said(player, job("again")))[1].text == "again"
    with pytest.raises(ProviderFailure, match="2 times, and was asked once more") as caught:
        await said(player, job("again"))
    assert (caught.value.reason, caught.value.kind) == ("not_on_cassette", "invalid")


async def test_a_request_that_was_not_recorded_says_what_is_near(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    await said(await opened(path, mock()), job("What is the capital of France?"))
    player = await opened(path)
    with pytest.raises(ProviderFailure, match="nearest prompt is 'What is the capital of France"):
        await player.start(job("What is the capital of Spain?"))
    with pytest.raises(ProviderFailure, match="with another model, history or other parameters"):
        await player.start(job("What is the capital of France?", max_tokens=5))


async def test_what_is_on_the_cassette_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    await said(await opened(path, mock(answer="old")), job("known"))
    recorder = await opened(path, mock(answer="new"))
    assert (await said(recorder, job("known")))[1].text == "old"
    assert (await said(recorder, job("unknown")))[1].text == "new"
    assert len(path.read_bytes().splitlines()) == 2


async def test_a_cancelled_call_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    generation = await (await opened(path, mock(latency_s=3600))).start(job("late"))
    await generation.cancel()
    with pytest.raises(ProviderFailure):
        await anext(aiter(generation.deltas()))
    assert not path.exists()


async def test_no_cassette_and_a_damaged_one_are_said_before_anybody_asks(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    assert "there is no cassette" in str((await opened(path)).missing())
    path.write_bytes(orjson.dumps({"key": "k"}) + b"\n")
    player = await opened(path)
    assert f"line 1 of {path} is no recorded call" in str(player.missing())
    with pytest.raises(ProviderFailure) as caught:
        await player.start(job("a"))
    assert caught.value.kind == "not_deployed"


async def test_a_cassette_that_takes_nothing_fails_the_call(tmp_path: Path) -> None:
    recorder = await opened(tmp_path / "file" / "one.jsonl", mock())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ProviderFailure, match="cannot record on") as caught:
        await said(recorder, job("a"))
    assert caught.value.reason == "not_recorded"


async def test_a_call_that_a_full_disk_took_half_of_spoils_no_other(tmp_path: Path) -> None:
    """The next one was written behind the half: the cassette was damaged for good."""
    path = tmp_path / "one.jsonl"
    recorder = await opened(path, mock())
    await said(recorder, job("first"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, before[1]))
    try:
        with pytest.raises(ProviderFailure, match="cannot record on"):
            await said(recorder, job("second"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await said(recorder, job("third"))
    player = await opened(path)
    assert player.missing() is None
    assert (await said(player, job("third")))[1].text == "third"
