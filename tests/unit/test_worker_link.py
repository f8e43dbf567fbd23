"""Answers of a worker that misbehaves: each ends, as an answer or a failure, and no process is left."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksi_completion.providers.generation import MAX_ANSWER_CHARACTERS
from ksi_completion.providers.interface import FailureClass, ProviderFailure
from ksi_completion.providers.worker_link import WorkerLink
from tests.children import ENV, marks, on_both_loops
from tests.support.workers import alive, failure_of, first_of, job, kill, linked, text_of


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ksi") as folder:
        yield Path(folder)


async def answer_to(link: WorkerLink, *said: str) -> str:
    return await text_of(await link.start(job(*said)))


async def refusal_of(link: WorkerLink) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as refused:
        await link.start(job("echo: one"))
    return refused.value


def pid_of(link: WorkerLink) -> int:
    pid = link.statistics().pid
    assert pid is not None
    return pid


@on_both_loops
async def test_an_answer_comes_in_pieces_and_then_whole(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        generation = await link.start(job("echo: one two three"))
        assert await text_of(generation) == "one two three"
        answer = generation.answer
    assert (answer.text, answer.model, answer.finish_reason) == ("one two three", "odd", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cached_tokens) == (
        3,
        3,
        1,
    )
    assert answer.response == {
        "result": "one two three",
        "model": "odd",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 1, "cache_creation_tokens": 0},
    }


@on_both_loops
async def test_ten_that_ask_at_once_share_one_worker_and_get_their_own_answers(run_dir: Path) -> None:
    async with linked(run_dir) as link, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(answer_to(link, f"echo: number {number}")) for number in range(10)]
        assert [await task for task in asked] == [f"number {number}" for number in range(10)]
        assert link.statistics().started == 1


async def test_answers_of_one_worker_are_made_side_by_side(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        endless = await link.start(job("mode:hang"))
        assert await first_of(endless) == str(pid_of(link))
        assert await answer_to(link, "echo: meanwhile") == "meanwhile"
        assert link.statistics().generations == 1


async def test_a_whole_conversation_reaches_the_worker(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        assert await answer_to(link, "Hi", "Hello", "mode:count") == "17 characters, 3 messages"


@on_both_loops
async def test_a_prompt_of_five_megabytes_reaches_the_worker(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        prompt = "mode:count " + "é" * 2_500_000
        assert await answer_to(link, prompt) == f"{len(prompt)} characters, 1 messages"


async def test_a_conversation_longer_than_a_worker_reads_is_refused(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        with pytest.raises(ProviderFailure, match="of at most 67108864") as refused:
            await link.start(job("x" * 67_108_864))
        assert (refused.value.reason, refused.value.kind) == ("too_large", "invalid")
        assert link.statistics().generations == 0


@on_both_loops
async def test_a_piece_of_a_megabyte_comes_whole(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        assert await answer_to(link, "mode:long 1500000") == "x" * 1_500_000


async def test_a_character_that_is_written_in_two_parts_is_one(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        assert await answer_to(link, "mode:pieces") == "äöü 😀"


async def test_an_answer_without_bounds_fails(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        failure = await failure_of(await link.start(job(f"mode:long {MAX_ANSWER_CHARACTERS + 1}")))
        assert (failure.reason, failure.kind) == ("too_large", "invalid")
        assert await answer_to(link, "echo: again") == "again"


async def test_an_answer_without_bounds_leaves_the_one_beside_it_another_try(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        beside = await link.start(job("mode:hang"))
        await anext(beside.deltas())
        endless = await link.start(job(f"mode:long {MAX_ANSWER_CHARACTERS + 1}"))
        assert (await failure_of(endless)).reason == "too_large"
        failure = await failure_of(beside)
        assert (failure.reason, failure.kind) == ("worker_garbled", "transient")


async def test_who_reads_late_gets_the_pieces_joined(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        generation = await link.start(job("echo: one two three"))
        await generation.ended.wait()
        assert [text async for text in generation.deltas()] == ["one two three"]


@on_both_loops
async def test_a_flood_on_stderr_holds_nothing_up(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        assert await answer_to(link, "mode:flood 6000000") == "flooded"


async def test_a_failure_is_told_as_the_worker_tells_it(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        failure = await failure_of(await link.start(job("mode:fail rate_limited")))
    assert (failure.kind, failure.reason, failure.message) == (
        "rate_limited",
        "as_asked",
        "a failure: rate_limited",
    )
    assert failure.retry_after_s == 1.5


@pytest.mark.parametrize(
    ("prompt", "how"), [("mode:die", r"exit code 3\): it had enough"), ("mode:kill", r"signal 9\)")]
)
async def test_the_death_of_a_worker_fails_its_answers_and_the_next_has_another(
    run_dir: Path, prompt: str, how: str
) -> None:
    async with linked(run_dir) as link:
        other = await link.start(job("mode:hang"))
        failure = await failure_of(await link.start(job(prompt)))
        assert (failure.reason, failure.kind) == ("worker_died", "transient")
        assert (await failure_of(other)).reason == "worker_died"
        with pytest.raises(ProviderFailure, match=how):
            _ = other.answer
        assert await answer_to(link, "echo: again") == "again"
        assert link.statistics().started == 2


@on_both_loops
async def test_a_worker_killed_from_outside_is_replaced(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        generation = await link.start(job("mode:hang"))
        await first_of(generation)
        kill(pid_of(link))
        assert (await failure_of(generation)).reason == "worker_died"
        assert await answer_to(link, "echo: again") == "again"


@on_both_loops
async def test_a_killed_runner_leaves_no_worker_and_the_next_has_another(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        generation = await link.start(job("mode:stubborn"))
        pids = [int(pid) for pid in (await first_of(generation)).split()]
        (mark,) = marks(run_dir)
        kill(mark["runner"])
        assert (await failure_of(generation)).reason == "worker_died"
        assert alive(pids) == []
        assert await answer_to(link, "echo: again") == "again"


async def test_a_worker_that_dies_between_answers_is_replaced(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        assert await answer_to(link, "echo: one") == "one"
        kill(pid_of(link))
        worker = link._worker
        assert worker is not None
        await worker.gone.wait()
        assert link.statistics().pid is None
        assert await answer_to(link, "echo: two") == "two"


async def test_a_line_that_is_no_report_ends_the_worker(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        failure = await failure_of(await link.start(job("mode:garbage")))
        assert (failure.reason, failure.kind) == ("worker_garbled", "transient")
        assert "please wait" not in failure.message, "what a worker writes may be what it was asked"
        assert await answer_to(link, "echo: again") == "again"


@on_both_loops
async def test_a_confirmed_cancel_leaves_the_worker_and_its_other_answers(run_dir: Path) -> None:
    gate = run_dir / "gate"
    async with linked(run_dir) as link:
        generation, other = await link.start(job("mode:hang")), await link.start(job(f"mode:gate {gate}"))
        await first_of(generation)
        proof = await generation.cancel()
        assert (proof.how, proof.pids_gone) == ("confirmed", [])
        assert (await failure_of(generation)).reason == "cancelled"
        gate.touch()
        assert await text_of(other) == "0 1 2 3 "
        assert link.statistics().started == 1


@pytest.mark.parametrize("prompt", ["mode:ignore_cancel", "mode:stubborn", "mode:deaf"])
async def test_an_ignored_cancel_kills_the_worker_and_all_it_started(run_dir: Path, prompt: str) -> None:
    async with linked(run_dir, confirm_s=0.2) as link:
        other = await link.start(job("mode:hang"))
        generation = await link.start(job(prompt))
        pids = {int(pid) for pid in (await first_of(generation)).split()}
        proof = await generation.cancel()
        assert proof.how == "killed"
        assert pids <= set(proof.pids_gone)
        assert alive(proof.pids_gone) == []
        assert (await failure_of(generation)).reason == "cancelled"
        failure = await failure_of(other)
        assert (failure.reason, failure.kind) == ("worker_died", "transient")
        assert await answer_to(link, "echo: again") == "again"


async def test_the_next_worker_begins_when_the_killed_one_is_gone(run_dir: Path) -> None:
    async with linked(run_dir, confirm_s=0) as link, asyncio.TaskGroup() as tasks:
        generation = await link.start(job("mode:stubborn"))
        pids = [int(pid) for pid in (await first_of(generation)).split()]
        tasks.create_task(generation.cancel())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not generation.ended.is_set()
        assert await answer_to(link, "mode:alive " + " ".join(map(str, pids))) == "none"
        assert link.statistics().started == 2


async def test_what_a_cancel_may_take_at_most_is_under_three_seconds(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        settings = link._settings
        assert settings.confirm_s + settings.grace_s <= 2.5


async def test_cancel_may_be_asked_often_and_after_the_end(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        generation = await link.start(job("echo: one"))
        assert await text_of(generation) == "one"
        assert (await generation.cancel()).how == "confirmed"
        endless = await link.start(job("mode:hang"))
        async with asyncio.TaskGroup() as tasks:
            cancels = [tasks.create_task(endless.cancel()) for _ in range(3)]
        assert [task.result().how for task in cancels] == ["confirmed"] * 3
        assert generation.answer.text == "one"


async def test_cancel_after_the_death_of_the_worker_names_what_is_gone(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        generation = await link.start(job("mode:kill"))
        pid = int(await first_of(generation))
        await failure_of(generation)
        proof = await generation.cancel()
        assert proof.how == "killed"
        assert pid in proof.pids_gone


@pytest.mark.parametrize(
    ("manner", "kind", "reason", "words"),
    [
        ("broken", "not_deployed", "not_started", "exit code 1.*: cannot load the model: it is odd"),
        ("refusing", "auth", "no_key", "give me a key"),
        ("crashing", "transient", "worker_died", "signal 9"),
        ("silent", "transient", "not_ready", "not ready within 0.5 s"),
    ],
)
async def test_a_worker_that_does_not_begin_is_a_clear_failure(
    run_dir: Path, manner: str, kind: FailureClass, reason: str, words: str
) -> None:
    settings = {"start_timeout_s": 0.5} if manner == "silent" else {}
    async with linked(run_dir, manner, **settings) as link:
        for _ in range(2):
            with pytest.raises(ProviderFailure, match=words) as failed:
                await link.start(job("echo: one"))
            assert (failed.value.kind, failed.value.reason) == (kind, reason)
        assert link.statistics().started == 2, "each time it is tried again"
        assert link.statistics().pid is None


async def test_a_command_that_is_not_there_is_a_clear_failure(run_dir: Path) -> None:
    async with linked(run_dir, argv=["no-such-worker"]) as link:
        with pytest.raises(ProviderFailure, match="'no-such-worker'") as failed:
            await link.start(job("echo: one"))
        assert (failed.value.kind, failed.value.reason) == ("not_deployed", "not_started")


async def test_all_who_wait_for_a_worker_hear_that_it_does_not_begin(run_dir: Path) -> None:
    async with linked(run_dir, "broken") as link, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(refusal_of(link)) for _ in range(3)]
        assert [(await task).reason for task in asked] == ["not_started"] * 3
        assert link.statistics().started == 1


async def test_a_start_that_is_cancelled_while_the_worker_begins_asks_nothing(run_dir: Path) -> None:
    async with linked(run_dir) as link, asyncio.TaskGroup() as tasks:
        cancelled = tasks.create_task(link.start(job("mode:hang")))
        patient = tasks.create_task(answer_to(link, "echo: one"))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await patient == "one"
        assert link.statistics().generations == 0


@on_both_loops
async def test_a_start_that_is_cancelled_while_it_is_sent_leaves_nothing_at_work(run_dir: Path) -> None:
    async with linked(run_dir, confirm_s=0.2) as link:
        deaf = await link.start(job("mode:deaf"))
        pid = int(await first_of(deaf))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await link.start(job("x" * 5_000_000))
        assert alive([pid]) == []
        assert link.statistics().generations == 0


async def test_a_worker_without_work_is_stopped_and_another_started_when_it_is_wanted(run_dir: Path) -> None:
    async with linked(run_dir, idle_s=0.05) as link:
        assert await answer_to(link, "mode:slow 2 0.2") == "0 1 ", "one that works is not stopped"
        worker = link._worker
        assert worker is not None
        await worker.gone.wait()
        assert link.statistics().pid is None
        assert await answer_to(link, "echo: again") == "again"
        assert link.statistics().started == 2


async def test_what_an_answered_worker_left_behind_ends_with_it(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        pid = int(await answer_to(link, "mode:fork"))
        assert alive([pid]) == [pid]
    assert alive([pid]) == []


async def test_close_fails_what_is_under_way_and_what_comes_after(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        generation = await link.start(job("mode:hang"))
        pid = int(await first_of(generation))
        await link.close()
        assert alive([pid]) == []
        assert (await failure_of(generation)).reason == "stopping"
        with pytest.raises(ProviderFailure, match="stopping"):
            await link.start(job("echo: one"))
        await link.close()


@pytest.mark.parametrize("turns", [1, 2, 5])
async def test_close_while_the_worker_begins_fails_who_waits_for_it(run_dir: Path, turns: int) -> None:
    async with linked(run_dir, "silent") as link, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(refusal_of(link))
        for _ in range(turns):
            await asyncio.sleep(0)
        await link.close()
        assert (await waiting).reason == "stopping"


async def test_a_worker_has_the_environment_that_it_is_given_and_no_more(run_dir: Path) -> None:
    async with linked(run_dir, env={**ENV, "LANG": "C.UTF-8"}) as link:
        environment = json.loads(await answer_to(link, "mode:environment"))
    # Python adds LC_CTYPE to its own.
    assert {name: value for name, value in environment.items() if name != "LC_CTYPE"} == {
        **ENV,
        "LANG": "C.UTF-8",
    }
