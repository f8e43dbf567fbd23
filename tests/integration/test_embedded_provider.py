"""The model that comes with KSI: the real one, in its worker, under a runner."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from ksi_completion.providers import embedded
from ksi_completion.providers.embedded import EmbeddedProvider
from ksi_completion.providers.interface import CompletionProvider, Job, ProviderFailure
from ksi_completion.workers import embedded as worker_script
from ksi_daemon.processes import Processes
from tests.children import marks
from tests.support.workers import ODD_WORKER, alive, failure_of, first_of, job, kill, text_of

from .conftest import LogFile

WITHOUT_WEIGHTS = """
import runpy, sys
del sys.argv[0]
worker = runpy.run_path(sys.argv[0])
worker["main"].__globals__["PACKAGE"] = "no_weights"
worker["main"]()
"""
WITH_DAMAGED_WEIGHTS = WITHOUT_WEIGHTS.replace(
    '"PACKAGE"] = "no_weights"', '"_weights_folders"] = lambda: ["/dev/null"]'
)

FRANCE = "What is the capital of France?"
STORY = "Tell me a long story."

uninstalled = EmbeddedProvider(Processes(Path("/")), Path("/")).missing()
pytestmark = [
    pytest.mark.skipif(uninstalled is not None, reason=str(uninstalled)),
    # One core makes all answers, and it is shared with the other tests.
    pytest.mark.timeout(300),
]


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[EmbeddedProvider]:
    """Give the provider; no process of it is left at its end."""
    async with Processes(tmp_path) as processes:
        provider = patient(EmbeddedProvider(processes, tmp_path))
        try:
            yield provider
        finally:
            await provider.close()
        assert marks(tmp_path) == []


def patient(provider: EmbeddedProvider) -> EmbeddedProvider:
    """Give its worker time to confirm a cancel: it shares a core with whatever else is tested."""
    provider._link._settings = replace(provider._link._settings, confirm_s=60.0)
    return provider


def asked(*said: str, **fields: Any) -> Job:
    return job(*said, model=embedded.MODEL, **fields)


async def answer_to(provider: CompletionProvider, *said: str, **fields: Any) -> str:
    return await text_of(await provider.start(asked(*said, **fields)))


def pid_of(provider: EmbeddedProvider) -> int:
    pid = provider.statistics().pid
    assert pid is not None
    return pid


def slots(folder: Path) -> Sequence[Mapping[str, Any]]:
    """Ask llama.cpp itself what it is doing."""
    with socket.socket(socket.AF_UNIX) as server, closing(http.client.HTTPConnection("llama")) as connection:
        server.connect(os.path.relpath(folder / "llama.sock"))
        connection.sock = server
        connection.request("GET", "/slots")
        found: Sequence[Mapping[str, Any]] = json.load(connection.getresponse())
        return found


async def test_it_knows_the_capital_of_france_and_says_so_again(provider: EmbeddedProvider) -> None:
    generation = await provider.start(asked(FRANCE))
    pieces = [text async for text in generation.deltas()]
    answer = generation.answer
    assert "Paris" in answer.text
    assert "".join(pieces) == answer.text
    assert answer.finish_reason == "stop"
    assert answer.response == {
        "result": answer.text,
        "model": "smollm2-135m-instruct",
        "finish_reason": "stop",
        "usage": answer.usage.model_dump(exclude_none=True),
    }
    assert await answer_to(provider, FRANCE) == answer.text


async def test_an_answer_comes_as_it_is_made(provider: EmbeddedProvider) -> None:
    generation = await provider.start(asked(STORY, max_tokens=100))  # which takes seconds
    assert len([text async for text in generation.deltas()]) > 1


async def test_tokens_are_counted_and_those_of_a_session_are_read_once(provider: EmbeddedProvider) -> None:
    first = await provider.start(asked(FRANCE))
    text = await text_of(first)
    assert (first.answer.usage.prompt_tokens, first.answer.usage.cached_tokens) == (27, 0)
    assert first.answer.usage.completion_tokens == 8
    second = await provider.start(asked(FRANCE, text, "And of Italy?"))
    await text_of(second)
    assert second.answer.usage.cached_tokens >= 27


async def test_an_answer_ends_at_the_length_that_is_asked_for(provider: EmbeddedProvider) -> None:
    generation = await provider.start(asked(STORY, max_tokens=3))
    await text_of(generation)
    assert (generation.answer.finish_reason, generation.answer.usage.completion_tokens) == ("length", 3)


async def test_what_the_system_is_told_reaches_the_model(provider: EmbeddedProvider) -> None:
    generation = await provider.start(
        asked(FRANCE, system="You are a helpful assistant. Be brief.", max_tokens=1)
    )
    await text_of(generation)
    assert generation.answer.usage.prompt_tokens == 27 + 3


async def test_no_text_of_a_prompt_can_end_its_message(provider: EmbeddedProvider) -> None:
    generation = await provider.start(asked("<|im_end|><|im_start|>" * 10, max_tokens=1))
    await text_of(generation)
    template = 20
    assert generation.answer.usage.prompt_tokens > template + 10 * 4, (
        "as special tokens they would be two each"
    )


@pytest.mark.parametrize("text", ["\0\x1b[31m\ufffe", "日本語 😀 ñ", "%s {{ messages }} $HOME /etc/passwd"])
async def test_any_text_is_only_text(provider: EmbeddedProvider, text: str) -> None:
    generation = await provider.start(asked(text, max_tokens=5))
    await text_of(generation)
    assert generation.answer.usage.prompt_tokens > 20


async def test_two_answers_are_made_side_by_side(provider: EmbeddedProvider) -> None:
    alone = await answer_to(provider, FRANCE)
    story = await provider.start(asked(STORY))
    await first_of(story)
    assert await answer_to(provider, FRANCE) == alone
    assert not story.ended.is_set()
    assert (await story.cancel()).how == "confirmed"


async def test_a_cancelled_answer_is_worked_on_no_more(provider: EmbeddedProvider, tmp_path: Path) -> None:
    generation = await provider.start(asked(STORY, max_tokens=4000))
    await first_of(generation)
    assert [slot["is_processing"] for slot in slots(tmp_path / "embedded")].count(True) == 1
    proof = await generation.cancel()
    assert not any(slot["is_processing"] for slot in slots(tmp_path / "embedded"))
    assert (proof.how, proof.pids_gone) == ("confirmed", [])
    assert (await failure_of(generation)).reason == "cancelled"
    assert "Paris" in await answer_to(provider, FRANCE)
    assert provider.statistics().started == 1


async def test_a_prompt_is_cancelled_while_it_is_read(provider: EmbeddedProvider, tmp_path: Path) -> None:
    generation = await provider.start(asked("A quick fox. " * 800))
    # The worker takes this order after that one, and its answer waits for a batch of that prompt.
    assert "Paris" in await answer_to(provider, FRANCE)
    assert [slot["is_processing"] for slot in slots(tmp_path / "embedded")].count(True) == 1
    await generation.cancel()
    assert not any(slot["is_processing"] for slot in slots(tmp_path / "embedded"))
    assert not generation._pieces, "no token of the answer was made yet"


async def test_a_conversation_that_is_too_long_loses_its_oldest_turns(provider: EmbeddedProvider) -> None:
    history = [f"word number {number} " * 900 for number in range(2)]
    generation = await provider.start(asked(*history, FRANCE))
    assert "Paris" in await text_of(generation)
    assert generation.answer.response["dropped_messages"] == 2
    assert generation.answer.usage.prompt_tokens == 27


@pytest.mark.parametrize("prompt", ["word " * 5000, "x" * 5_000_000, "lorem ipsum dolor " * 280_000])
async def test_a_prompt_longer_than_the_context_is_a_clear_failure(
    provider: EmbeddedProvider, prompt: str
) -> None:
    other = await provider.start(asked(FRANCE))
    failure = await failure_of(await provider.start(asked(prompt)))
    assert (failure.reason, failure.kind) == ("context_exceeded", "invalid")
    assert "tokens or more, and the model's context has 4096" in failure.message
    assert "Paris" in await text_of(other)


@pytest.mark.parametrize("said", [[], [""], [" \n\t"], [FRANCE, "Paris.", ""]])
async def test_an_empty_prompt_is_refused_before_the_model(
    provider: EmbeddedProvider, said: list[str]
) -> None:
    with pytest.raises(ProviderFailure, match="the prompt is empty") as refused:
        await provider.start(asked(*said))
    assert (refused.value.reason, refused.value.kind) == ("empty_prompt", "invalid")
    assert provider.statistics().started == 0


async def test_a_model_that_it_has_not_is_refused(provider: EmbeddedProvider) -> None:
    with pytest.raises(ProviderFailure, match="no model 'gpt-2', only smollm2-135m-instruct") as refused:
        await provider.start(job(FRANCE, model="gpt-2"))
    assert (refused.value.reason, refused.value.kind) == ("no_model", "invalid")


async def test_a_worker_killed_in_the_middle_of_an_answer_is_replaced(provider: EmbeddedProvider) -> None:
    generation = await provider.start(asked(STORY))
    await first_of(generation)
    killed = pid_of(provider)
    kill(killed)
    failure = await failure_of(generation)
    assert (failure.reason, failure.kind) == ("worker_died", "transient")
    assert alive([killed]) == []
    # The killed one left its socket behind.
    assert "Paris" in await answer_to(provider, FRANCE)
    assert pid_of(provider) != killed


async def test_only_its_owner_reaches_the_model_and_no_secret_reaches_it(
    provider: EmbeddedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "secret-4711")
    await answer_to(provider, FRANCE, max_tokens=1)
    assert (tmp_path / "embedded").stat().st_mode & 0o777 == 0o700
    process = Path(f"/proc/{pid_of(provider)}")
    assert b"4711" not in (process / "environ").read_bytes()
    assert b"France" not in (process / "cmdline").read_bytes()
    listening = [
        line for name in ("tcp", "tcp6") for line in (process / "net" / name).read_text().split("\n")[1:]
    ]
    inodes = {str(fd.readlink()) for fd in (process / "fd").iterdir()}
    assert not [line for line in listening if line and f"socket:[{line.split()[9]}]" in inodes]


async def test_close_ends_the_worker(provider: EmbeddedProvider) -> None:
    await answer_to(provider, FRANCE, max_tokens=1)
    pid = pid_of(provider)
    await provider.close()
    assert alive([pid]) == []


async def test_an_order_that_waits_in_the_worker_is_cancelled_there(tmp_path: Path) -> None:
    async with Processes(tmp_path) as processes:
        provider = patient(EmbeddedProvider(processes, tmp_path, concurrency=1))
        story = await provider.start(asked(STORY, max_tokens=4000))
        await first_of(story)
        waiting = await provider.start(asked(FRANCE))
        assert (await waiting.cancel()).how == "confirmed"
        assert not story.ended.is_set()
        await provider.close()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-I", "-S"], "cannot load the model: No module named 'xllamacpp'"),
        (["-I", "-c", WITHOUT_WEIGHTS], "cannot load the model: the package no_weights"),
        (["-I", "-c", WITH_DAMAGED_WEIGHTS], "cannot load the model: Failed to init server"),
    ],
)
async def test_a_model_that_cannot_be_loaded_is_a_clear_failure(
    tmp_path: Path, flags: list[str], words: str
) -> None:
    worker = [sys.executable, *flags, worker_script.__file__, str(tmp_path / "embedded"), "2"]
    async with Processes(tmp_path) as processes:
        provider = EmbeddedProvider(processes, tmp_path, worker=worker)
        with pytest.raises(ProviderFailure, match=words) as failed:
            await provider.start(asked(FRANCE))
        assert (failed.value.reason, failed.value.kind) == ("not_started", "not_deployed")
        await provider.close()


def test_an_order_that_makes_no_sense_ends_the_worker(tmp_path: Path) -> None:
    command = [sys.executable, "-I", worker_script.__file__, str(tmp_path), "2"]
    senseless = b'{"do": "complete", "id": "1", "max_tokens": null, "system": null}\n'
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        # Its stdin stays open: it ends by itself.
        assert worker.stdin is not None
        worker.stdin.write(senseless)
        worker.stdin.flush()
        assert worker.wait(120) == 1
        output, errors = worker.communicate()
    finally:
        worker.kill()
    assert output == b'{"report": "ready"}\n'
    assert b"KeyError: 'messages'" in errors


def test_a_worker_ends_with_its_stdin_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-I", worker_script.__file__, str(tmp_path), "2"]
    messages = [{"role": "user", "content": STORY}]
    order = {"do": "complete", "id": "1", "system": None, "max_tokens": 4000, "messages": messages}
    line = json.dumps(order).encode() + b"\n"
    done = subprocess.run(command, input=line, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b'"done"' not in done.stdout


async def test_another_worker_may_take_its_place(tmp_path: Path) -> None:
    async with Processes(tmp_path) as processes:
        provider = EmbeddedProvider(processes, tmp_path, worker=ODD_WORKER)
        assert provider.missing() is None
        assert await answer_to(provider, "echo: instead") == "instead"
        await provider.close()


async def test_the_log_of_a_worker_names_no_request(tmp_path: Path, log_file: LogFile) -> None:
    async with Processes(tmp_path) as processes:
        provider = EmbeddedProvider(processes, tmp_path, worker=ODD_WORKER)
        with log_file.written(), structlog.contextvars.bound_contextvars(request_id="first"):
            assert await answer_to(provider, "echo: one") == "one"
            await provider.close()
    (ready,) = log_file.lines("worker.ready")
    assert "request_id" not in ready


async def test_what_is_not_installed_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PACKAGES", ("no_such_library", "no_such_weights"))
    provider = EmbeddedProvider(Processes(tmp_path), tmp_path)
    missing = provider.missing()
    assert missing is not None
    assert missing.startswith(
        "the embedded model is not installed (no no_such_library and no no_such_weights)"
    )
    assert "daemon_control.py start" in missing
    with pytest.raises(ProviderFailure) as refused:
        await provider.start(asked(FRANCE))
    assert (refused.value.reason, refused.value.kind) == ("not_installed", "not_deployed")
