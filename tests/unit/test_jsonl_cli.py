"""Programs that answer in lines of JSON: well, badly, and not at all; nothing of them is left."""

import asyncio
import json
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from ksi_completion.providers.command import Commands, Invocation
from ksi_completion.providers.interface import Answer, Job, ProviderFailure
from ksi_completion.providers.jsonl_cli import JsonlCliProvider
from ksi_completion.providers.jsonl_reading import JsonlReading
from ksi_completion.providers.jsonl_settings import JsonlCliSettings
from ksi_daemon.processes import Processes
from tests.children import marks, on_both_loops
from tests.support.provider_cases import PARROT
from tests.support.waiting import eventually
from tests.support.workers import alive, failure_of, first_of, job, text_of

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "odd_program.py"

SETTINGS: dict[str, Any] = {
    "command": [sys.executable, "-I", str(PROGRAM)],
    "lines": [
        {
            "text": "text",
            "prompt_tokens": "tokens.in",
            "completion_tokens": "tokens.out",
            "session": "session",
            "when": {"end": True},
            "end": True,
        },
        {"text": "text"},
    ],
    "exits": {65: {"kind": "invalid", "reason": "nonsense"}},
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ksi") as made:
        yield Path(made)


@asynccontextmanager
async def provided(folder: Path, **settings: Any) -> AsyncIterator[JsonlCliProvider]:
    """Give the provider; at its end nothing of its programs is left."""
    async with Processes(folder) as processes:
        parsed = JsonlCliSettings.model_validate({**SETTINGS, **settings})
        provider = JsonlCliProvider("odd", processes, folder / "state", parsed)
        try:
            yield provider
        finally:
            await provider.close()
        assert marks(folder) == []


def asked(*said: str, **fields: Any) -> Job:
    return job(*said, model="default", **fields)


async def answer_to(folder: Path, prompt: str, fields: Any = None, **settings: Any) -> Answer:
    async with provided(folder, **settings) as provider:
        generation = await provider.start(asked(prompt, **(fields or {})))
        assert await text_of(generation) == generation.answer.text
        return generation.answer


async def failure_with(folder: Path, prompt: str, **settings: Any) -> ProviderFailure:
    async with provided(folder, **settings) as provider:
        return await failure_of(await provider.start(asked(prompt)))


@on_both_loops
async def test_lines_become_an_answer_with_its_usage_and_session(folder: Path) -> None:
    answer = await answer_to(folder, "say: Polly")
    assert (answer.text, answer.provider_session, answer.model) == ("Polly", "s-1", "default")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 1)


@on_both_loops
async def test_what_is_no_line_of_json_is_passed_over(folder: Path) -> None:
    assert (await answer_to(folder, "noise")).text == "heard"


@on_both_loops
async def test_lines_may_come_in_pieces_and_the_last_without_its_end(folder: Path) -> None:
    assert (await answer_to(folder, "half")).text == "äöü 😀"


@on_both_loops
async def test_half_a_surrogate_pair_is_a_question_mark(folder: Path) -> None:
    assert (await answer_to(folder, "half a pair")).text == "a?b"


@on_both_loops
async def test_a_line_of_megabytes_is_one(folder: Path) -> None:
    assert len((await answer_to(folder, "line 7000000")).text) == 7_000_000


@on_both_loops
async def test_an_answer_and_a_line_have_bounds(folder: Path) -> None:
    assert (await failure_with(folder, "line 9000000")).reason == "too_large"
    assert (await failure_with(folder, "line 17000000")).reason == "garbled"


@on_both_loops
async def test_a_flood_on_stderr_holds_nothing_up(folder: Path) -> None:
    assert (await answer_to(folder, "flood 4000000")).text == "flooded"


@on_both_loops
async def test_a_program_that_does_not_read_is_heard_all_the_same(folder: Path) -> None:
    answer = await answer_to(folder, "x" * 1_000_000, arguments=["deaf"])
    assert answer.text == "heard nothing"


@on_both_loops
async def test_a_program_that_stays_after_its_last_word_is_ended(folder: Path) -> None:
    assert (await answer_to(folder, "stay")).text == "begun"


@on_both_loops
async def test_what_a_program_leaves_behind_is_gone_with_it(folder: Path) -> None:
    answer = await answer_to(folder, "leave")
    assert alive(json.loads(answer.text)) == []


@on_both_loops
async def test_an_end_without_a_last_word_is_no_answer(folder: Path) -> None:
    for prompt in ("no end", "die"):
        failure = await failure_with(folder, prompt)
        assert (failure.kind, failure.usage) == ("transient", None), failure.message


@on_both_loops
async def test_exit_codes_mean_what_the_settings_say(folder: Path) -> None:
    known, other = await failure_with(folder, "exit 65"), await failure_with(folder, "exit 3")
    assert (known.kind, known.reason) == ("invalid", "nonsense")
    assert (other.kind, other.reason) == ("transient", "exit_code")
    assert "it had enough" in other.message
    every = await failure_with(folder, "exit 3", exits={"*": {"kind": "auth", "reason": "no"}})
    assert (every.kind, every.reason) == ("auth", "no")


@on_both_loops
async def test_a_cancel_hears_what_was_used(folder: Path) -> None:
    async with provided(folder) as provider:
        generation = await provider.start(asked("counted"))
        await first_of(generation)
        proof = await generation.cancel()
        failure = await failure_of(generation)
    assert (proof.how, failure.reason) == ("killed", "cancelled")
    assert failure.usage is not None
    assert failure.usage.prompt_tokens == 7


@on_both_loops
async def test_a_cancel_needs_nobodys_consent(folder: Path) -> None:
    async with provided(folder) as provider:
        generation = await provider.start(asked("stubborn"))
        await first_of(generation)
        (mark,) = marks(folder)
        proof = await generation.cancel()
        assert mark["pid"] in proof.pids_gone
        assert alive([mark["pid"]]) == []
    grace_s = signature(Invocation).parameters["grace_s"].default
    assert grace_s <= proof.elapsed_s
    assert grace_s < 3, "what the interface promises, but for what the machine takes"


@on_both_loops
async def test_a_program_that_is_not_there_is_said(folder: Path) -> None:
    async with provided(folder, command=["no-such-program"]) as provider:
        assert "no-such-program" in (provider.missing() or "")
        with pytest.raises(ProviderFailure) as refused:
            await provider.start(asked("Hi"))
    assert refused.value.kind == "not_deployed"


# What is asked


async def arguments_of(folder: Path, arguments: list[str], **fields: Any) -> list[str]:
    answer = await answer_to(folder, "argv", fields, arguments=arguments, resume=["--session={session}"])
    return list(json.loads(answer.text))


@on_both_loops
async def test_a_template_is_filled_or_left_out(folder: Path) -> None:
    words = ["--model={model}", "--max={max_tokens}", "--schema={schema}", "{{literal}}"]
    assert await arguments_of(folder, words) == ["--model=default", "{literal}"]
    fields = {"max_tokens": 7, "provider_session": "s-1", "response_schema": {"type": "object"}}
    assert await arguments_of(folder, words, **fields) == [
        "--model=default",
        "--max=7",
        '--schema={"type": "object"}',
        "{literal}",
        "--session=s-1",
    ]


@on_both_loops
async def test_no_value_becomes_a_flag(folder: Path) -> None:
    hostile = {"provider_session": "--version"}
    assert await arguments_of(folder, ["--"], **hostile) == ["--", "--session=--version"]
    assert await arguments_of(folder, ["--", "{session}"], **hostile) == [
        "--",
        "--version",
        "--session=--version",
    ]
    with pytest.raises(ProviderFailure) as refused:
        await arguments_of(folder, ["{session}"], **hostile)
    assert (refused.value.kind, refused.value.reason) == ("invalid", "bad_argument")


@on_both_loops
async def test_a_value_that_is_a_template_is_said_as_it_is(folder: Path) -> None:
    assert await arguments_of(folder, ["--id={session}"], provider_session="{model.__class__}") == [
        "--id={model.__class__}",
        "--session={model.__class__}",
    ]


@on_both_loops
async def test_a_value_that_no_argument_can_hold_is_refused(folder: Path) -> None:
    for session in ("a\0b", "x" * 200_000):
        with pytest.raises(ProviderFailure) as refused:
            await arguments_of(folder, [], provider_session=session)
        assert refused.value.reason == "bad_argument"


@on_both_loops
async def test_a_conversation_and_a_system_prompt_are_in_one_text(folder: Path) -> None:
    async with provided(folder) as provider:
        generation = await provider.start(asked("One?", "One.", "say: Two?", system="Be brief."))
        text = await text_of(generation)
    assert text.startswith("Be brief.\n\nThis is our conversation so far:")
    assert text.endswith("say: Two?")


@on_both_loops
async def test_the_program_sees_no_key_that_nobody_gave_it(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("OPENAI_API_KEY", "sk-secret")
        environ.setenv("PARROT_KEY", "sk-parrot")
        answer = await answer_to(folder, "environment", pass_env=["PARROT_KEY"], env={"MOOD": "good"})
    names = set(json.loads(answer.text))
    assert {"PARROT_KEY", "MOOD", "HOME", "PATH"} <= names
    assert "OPENAI_API_KEY" not in names


@on_both_loops
async def test_tools_are_refused_where_they_cannot_be_restricted(folder: Path) -> None:
    async with provided(folder) as provider:
        assert not provider.restricts_tools
        with pytest.raises(ProviderFailure) as refused:
            await provider.start(asked("Hi", allowed_tools=["Read"]))
    assert (refused.value.kind, refused.value.reason) == ("invalid", "no_tools")
    words = await arguments_of(folder, ["--tools={tools}"], allowed_tools=["Read", "Grep"])
    assert words == ["--tools=Read,Grep"]


# The parrot of examples/


@on_both_loops
async def test_the_parrot_refuses_waits_and_remembers(folder: Path) -> None:
    async with Processes(folder) as processes:
        settings = JsonlCliSettings.model_validate({"file": str(PARROT)})
        provider = JsonlCliProvider("parrot", processes, folder / "state", settings)
        first = await provider.start(job("Pretty Polly", model="loud"))
        assert await text_of(first) == "PRETTY POLLY"
        again = job("And again", model="plain", provider_session=first.answer.provider_session)
        second = await provider.start(again)
        await text_of(second)
        assert second.answer.provider_session == first.answer.provider_session
        refused = await failure_of(await provider.start(job("cracker", model="plain")))
        await provider.close()
    assert (refused.kind, refused.retry_after_s) == ("rate_limited", 2)
    assert provider.keeps_sessions


# Settings


def refusal(folder: Path, text: str, **given: Any) -> str:
    path = folder / "provider.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".") as refused:
        JsonlCliSettings.model_validate({"file": str(path), **given})
    return str(refused.value)


def test_a_file_that_says_nothing_of_use_is_refused_with_the_reason(tmp_path: Path) -> None:
    assert "no command" in refusal(tmp_path, "models: [a]")
    assert "where the answer is" in refusal(tmp_path, "command: [cat]")
    assert "is no YAML" in refusal(tmp_path, "command: [cat")
    assert "holds no table" in refusal(tmp_path, "- cat")
    assert "alias" in refusal(tmp_path, "command: &c [cat]\nresume: *c")
    assert "cannot read" in refusal(tmp_path, "", file=str(tmp_path / "absent.yaml"))
    assert "bytes" in refusal(tmp_path, "#" * 2_000_000)
    assert "names 'prompts'" in refusal(tmp_path, "command: [cat]\narguments: ['{prompts}']")
    assert "{folder} only" in refusal(tmp_path, "command: ['{prompt}']\nlines: [{text: t}]")
    assert "Extra inputs" in refusal(tmp_path, "comand: [cat]")


def test_what_stands_in_the_settings_goes_before_the_file() -> None:
    settings = JsonlCliSettings.model_validate({"file": str(PARROT), "concurrency": 7})
    assert (settings.concurrency, list(settings.models)) == (7, ["plain", "loud"])


async def test_an_answer_whose_files_cannot_be_removed_is_given_all_the_same(folder: Path) -> None:
    """Who reads it was never told of its end, and the other runs of the provider were ended."""
    files = folder / "files"
    script = 'rm -r "$0"; : > "$0"; echo \'{"text": "hi", "end": true}\''
    invocation = Invocation(
        argv=["/bin/sh", "-c", script, str(files)],
        env={"PATH": "/usr/bin:/bin"},
        cwd=folder / "work",
        purpose="odd",
        stdin=b"",
        files={files / "one": b"secret"},
    )
    async with asyncio.timeout(5), Processes(folder) as processes:
        commands = Commands(processes)
        reading = JsonlReading(JsonlCliSettings.model_validate(SETTINGS), "default")
        assert await text_of(await commands.start(invocation, reading)) == "hi"
        await commands.close()


class Slow(dict[Path, bytes]):
    """Files that are written when they may be."""

    def __init__(self, files: dict[Path, bytes]) -> None:
        super().__init__(files)
        self.begun, self.may_go_on, self.written = (threading.Event() for _ in range(3))

    def items(self) -> Any:
        self.begun.set()
        self.may_go_on.wait(5)
        yield from super().items()
        self.written.set()


async def test_what_a_thread_writes_for_a_start_that_is_cancelled_is_removed(folder: Path) -> None:
    """It lay there until the next start of the daemon, and may have a prompt, or a server's key."""
    path = folder / "files" / "one"
    files = Slow({path: b"secret"})
    invocation = Invocation(["/bin/true"], env={}, cwd=folder, purpose="odd", stdin=b"", files=files)
    reading = JsonlReading(JsonlCliSettings.model_validate(SETTINGS), "default")

    async def is_gone() -> bool:
        return not path.exists()

    async with asyncio.timeout(5), Processes(folder) as processes, asyncio.TaskGroup() as tasks:
        start = tasks.create_task(Commands(processes).start(invocation, reading))
        await asyncio.to_thread(files.begun.wait, 5)
        start.cancel()
        with suppress(asyncio.CancelledError):
            await start
        files.may_go_on.set()
        await asyncio.to_thread(files.written.wait, 5)
        await eventually(is_gone, patience_s=2.0)
