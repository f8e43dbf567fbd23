"""What every provider of completions keeps, whatever makes its answers: the interface, as it is written."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_completion.providers.interface import ProviderFailure
from ksi_completion.retry_manager import RETRIED
from ksi_daemon.processes import Processes
from tests.children import marks
from tests.support.provider_cases import CASES, Open, Subject
from tests.support.workers import alive, failure_of, first_of, job, kill, text_of

# The embedded model answers on one core, which is shared with the other tests.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(
    params=[
        pytest.param(opened, id=name, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))
        for name, (opened, reason) in CASES.items()
    ]
)
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """Give the provider in its world; no process of it is left at its end."""
    opened: Open = request.param
    async with Processes(tmp_path) as processes:
        async with opened(processes, tmp_path) as subject:
            try:
                yield subject
            finally:
                await subject.provider.close()
        assert marks(tmp_path) == []


def pids(tmp_path: Path) -> list[int]:
    return [mark["pid"] for mark in marks(tmp_path)]


async def test_it_says_what_it_is_and_that_it_can_be_used(subject: Subject) -> None:
    provider = subject.provider
    assert provider.missing() is None
    assert provider.models
    assert provider.concurrency >= 1
    assert {type(provider.keeps_sessions), type(provider.restricts_tools)} == {bool}


async def test_an_answer_is_its_deltas_and_says_what_it_cost(subject: Subject) -> None:
    generation = await subject.provider.start(subject.answered)
    text = await text_of(generation)
    answer = generation.answer
    assert answer.text == text
    assert text == subject.text if subject.text else text
    assert answer.finish_reason == "stop"
    assert answer.model
    said = {name: answer.response[name] for name in ("result", "model", "finish_reason", "usage")}
    usage = answer.usage.model_dump(exclude_none=True)
    assert said == {"result": text, "model": answer.model, "finish_reason": "stop", "usage": usage}
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0
    assert answer.usage.cached_tokens <= answer.usage.prompt_tokens


async def test_answers_at_once_do_not_mix(subject: Subject) -> None:
    count = min(subject.provider.concurrency, 3)
    async with asyncio.TaskGroup() as tasks:
        generations = [await subject.provider.start(subject.answered) for _ in range(count)]
        texts = [tasks.create_task(text_of(generation)) for generation in generations]
    assert len({task.result() for task in texts}) == 1


async def test_a_cancel_in_the_middle_proves_that_nothing_is_left(subject: Subject, tmp_path: Path) -> None:
    generation = await subject.provider.start(subject.prepare_endless())
    await first_of(generation)
    before = pids(tmp_path)
    assert alive(before) == before
    proof = await generation.cancel()
    assert proof.how in {"confirmed", "killed"}
    assert alive(proof.pids_gone) == []
    if proof.how == "killed":
        assert set(before) <= set(proof.pids_gone)
    assert (await failure_of(generation)).reason == "cancelled"
    assert await text_of(await subject.provider.start(subject.answered)), "the next one is answered"


async def test_a_cancel_may_come_before_anything_was_said_and_again(subject: Subject) -> None:
    generation = await subject.provider.start(subject.prepare_endless())
    async with asyncio.TaskGroup() as tasks:
        proofs = [tasks.create_task(generation.cancel()) for _ in range(3)]
    assert {task.result().how for task in proofs} <= {"confirmed", "killed"}
    assert (await failure_of(generation)).reason == "cancelled"


async def test_a_cancel_after_the_end_takes_nothing_away(subject: Subject) -> None:
    generation = await subject.provider.start(subject.answered)
    text = await text_of(generation)
    await generation.cancel()
    assert generation.answer.text == text


async def test_a_start_that_is_cancelled_leaves_nothing_at_work(subject: Subject, tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as tasks:
        start = tasks.create_task(subject.provider.start(subject.prepare_endless()))
        await asyncio.sleep(0)
        start.cancel()
    await subject.provider.close()
    assert marks(tmp_path) == []


async def test_what_is_wrong_with_a_request_is_no_reason_to_ask_again(subject: Subject) -> None:
    with pytest.raises(ProviderFailure) as refused:
        await text_of(await subject.provider.start(subject.invalid))
    assert refused.value.kind == "invalid"
    assert refused.value.kind not in RETRIED
    assert refused.value.message


async def test_an_empty_prompt_is_refused_before_anything_is_started(
    subject: Subject, tmp_path: Path
) -> None:
    with pytest.raises(ProviderFailure) as refused:
        await subject.provider.start(job(" \n", model=subject.answered.model))
    assert (refused.value.kind, refused.value.reason) == ("invalid", "empty_prompt")
    assert pids(tmp_path) == []


async def test_a_process_that_is_killed_in_the_middle_is_a_failure_to_be_tried_again(
    subject: Subject, tmp_path: Path
) -> None:
    generation = await subject.provider.start(subject.prepare_endless())
    await first_of(generation)
    for pid in pids(tmp_path):
        kill(pid)
    failure = await failure_of(generation)
    assert failure.kind == "transient", failure.message
    assert await text_of(await subject.provider.start(subject.answered)), "the next one is answered"


async def test_the_end_of_the_provider_ends_what_is_under_way(subject: Subject, tmp_path: Path) -> None:
    generation = await subject.provider.start(subject.prepare_endless())
    await first_of(generation)
    await subject.provider.close()
    assert marks(tmp_path) == []
    assert (await failure_of(generation)).kind == "transient"
    with pytest.raises(ProviderFailure) as refused:
        await subject.provider.start(subject.answered)
    assert refused.value.reason == "stopping"
