"""Every accepted completion ends once, and nothing is left of its workers, whatever is killed."""

import asyncio
import json
import os
import random
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from ksi_client import AsyncClient
from ksi_common.async_db import AsyncSQLiteDB
from ksi_common.errors import KSIError
from ksi_common.events import completion, completion_status
from ksi_common.events.completion import Failure
from ksi_completion.responses import Line
from tests.support.completion_audit import check_calls, check_completions
from tests.support.daemon_process import DaemonProcess
from tests.support.scale import scaled
from tests.support.waiting import eventually

KILLS = scaled(4, 10)
COMPLETIONS = scaled(24, 50)
SESSIONS = 10
MANY = scaled(40, 200)
MANY_KILLS = scaled(4, 30)
WORKER = Path(__file__).parents[1] / "support" / "odd_worker.py"

PROMPTS = ("echo: one two three", "mode:slow 4 0.03", "mode:fork", "mode:pieces", "mode:fail invalid")


@asynccontextmanager
async def daemon_with_odd_model() -> AsyncIterator[DaemonProcess]:
    """Run a daemon whose worker can be told from those of other tests by its path."""
    daemon = DaemonProcess()
    worker = daemon.base / "worker.py"
    shutil.copy(WORKER, worker)
    daemon.environ["KSI_PLUGINS"] = json.dumps(
        {"completion": {"worker": [sys.executable, "-I", str(worker)]}}
    )
    async with daemon:
        yield daemon
        await wait_for_none_left(daemon)


async def wait_for_none_left(daemon: DaemonProcess) -> None:
    """Wait until no worker, and nothing that one has forked, is there; after the daemon's end."""
    if daemon.serving.is_set():
        await daemon.stop()

    async def none_left() -> bool:
        return not workers_of(daemon)

    await eventually(none_left)


def workers_of(daemon: DaemonProcess) -> list[int]:
    """List the processes that run the daemon's worker, forked ones too."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(daemon.base / "worker.py") in process.cmdline() and process.status() != "zombie":
                found.append(process.pid)
    return found


async def accept(
    client: AsyncClient, count: int, prompts: tuple[str, ...] = PROMPTS, *, sessions: int = SESSIONS
) -> list[str]:
    """Ask for so many, over some sessions; give the ids of those that were accepted."""
    for number in range(count):
        await client.call(
            completion.Async(
                prompt=prompts[number % len(prompts)],
                session_id=f"s{number % sessions}",
                request_id=f"r{number}",
            )
        )
    return [f"r{number}" for number in range(count)]


async def kill_after(daemon: DaemonProcess, events: int) -> None:
    """Kill the daemon when it has told so many events more of completions, or all have ended."""
    async with AsyncClient(daemon.socket) as client, asyncio.TaskGroup() as tasks:
        following = client.subscribe("completion:*")

        async def follow() -> None:
            for _ in range(events):
                await anext(following)

        watching = [tasks.create_task(follow()), tasks.create_task(wait_all_ended(daemon))]
        await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
        daemon.kill_now()
        for task in watching:
            task.cancel()
    await daemon.wait()


async def begin(daemon: DaemonProcess, prompt: str) -> None:
    """Ask for r1, and wait for the first it says; an event would tell that to nobody who comes late."""
    asked = completion.StreamCompletion(prompt=prompt, session_id="s", request_id="r1")
    async with AsyncClient(daemon.socket) as client:
        async for step in client.stream(asked):
            if step.type == "delta":
                break


async def open_count(client: AsyncClient) -> int:
    found = await client.call(completion_status.Status())
    return found.active_count + found.queued_count


async def wait_all_ended(daemon: DaemonProcess) -> None:
    async with AsyncClient(daemon.socket) as client:

        async def all_ended() -> bool:
            return await open_count(client) == 0

        await eventually(all_ended)


@pytest.mark.slow
@pytest.mark.timeout(240 + 10 * KILLS)
async def test_fifty_queued_completions_end_once_through_ten_kills() -> None:
    draw = random.Random(3)
    async with daemon_with_odd_model() as daemon:
        async with AsyncClient(daemon.socket) as client:
            accepted = await accept(client, COMPLETIONS)
        for _ in range(KILLS):
            await kill_after(daemon, draw.randint(1, 3 * COMPLETIONS // KILLS))
            tear(daemon.home, draw)
            await daemon.start()
        await wait_all_ended(daemon)
        await daemon.stop()
        outcomes = await check_completions(daemon.home, accepted)
    assert set(outcomes.values()) == {"completed", "failed"}


@pytest.mark.slow
@pytest.mark.timeout(240 + 10 * MANY_KILLS)
async def test_kills_in_the_middle_of_failures_and_back_offs_cost_no_answer_and_no_token() -> None:
    """Each request ends once, in its session's order, and is paid for as often as a provider was asked."""
    draw = random.Random(7)
    mock = {"latency_s": 0.4, "distribution": "uniform", "failure_rate": 0.3, "failures_cost": True}
    settings = {"mock": mock, "attempts": 10, "retry_delay_s": 0.2, "concurrency": 8, "breaker_open_s": 0.5}
    daemon = DaemonProcess()
    daemon.environ |= {"KSI_PROVIDER": "mock", "KSI_PLUGINS": json.dumps({"completion": settings})}
    async with daemon:
        async with AsyncClient(daemon.socket) as client:
            accepted = await accept(client, MANY, tuple(f"say {n}" for n in range(7)), sessions=20)
        for _ in range(MANY_KILLS):
            await kill_after(daemon, draw.randint(1, 3 * MANY // MANY_KILLS))
            tear(daemon.home, draw)
            await daemon.start()
        await wait_all_ended(daemon)
        await daemon.stop()
        outcomes = await check_completions(daemon.home, accepted)
        await check_calls(daemon.home, kills=MANY_KILLS)
    assert set(outcomes.values()) == {"completed"}


def tear(home: Path, draw: random.Random) -> None:
    """Leave half a line, or garbage, at the end of some files, as a crash in the middle of a write does."""
    for path in sorted((home / "logs" / "responses").glob("s*.jsonl")):
        if draw.random() < 0.5:
            with path.open("ab") as file:
                file.write(draw.choice([b'{"ksi":{"request_id":"r1","sess', b"\0" * 64, b"}\n{}\n"]))


async def test_a_line_that_no_row_names_is_adopted_and_what_follows_it_is_cut() -> None:
    async with daemon_with_odd_model() as daemon:
        async with AsyncClient(daemon.socket) as client:
            await client.call(completion.Async(prompt="mode:hang", session_id="s", request_id="r1"))
            await client.call(completion.Async(prompt="echo: two", session_id="s", request_id="r2"))
            async for event in client.subscribe("completion:*", start="beginning"):
                if event.event == "completion:started":
                    break
        await daemon.kill()
        line = Line(
            request_id="r1",
            session_id="s",
            provider="embedded",
            model="odd",
            timestamp="2026-01-01T00:00:00Z",
            duration_ms=5,
            outcome="failed",
            error=Failure(reason="written", message="just before the kill"),
        )
        path = daemon.home / "logs" / "responses" / "s.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(line.to_bytes() + b'{"ksi": {"requ')
        await daemon.start()
        await wait_all_ended(daemon)
        async with AsyncClient(daemon.socket) as client:
            found = (await client.call(completion_status.Status(request_id="r1"))).completion
        await daemon.stop()
        await check_completions(daemon.home, ["r1", "r2"])
        assert found is not None
        assert found.failure is not None
        assert (found.state, found.failure.reason) == ("failed", "written")
        assert path.with_name("s.jsonl.torn").read_bytes() == b'{"ksi": {"requ\n'


async def test_a_cancel_that_was_accepted_before_the_kill_holds_after_it() -> None:
    async with daemon_with_odd_model() as daemon:
        await begin(daemon, "mode:deaf")
        async with AsyncClient(daemon.socket) as client:
            cancelling = asyncio.ensure_future(client.call(completion.Cancel(request_id="r1")))  # noqa: TID251
            async with AsyncSQLiteDB(daemon.database, read_only=True) as database:

                async def wished() -> bool:
                    return bool(await database.fetch("SELECT 1 FROM completions WHERE cancel_wanted"))

                await eventually(wished)
            daemon.kill_now()
            with suppress(KSIError):
                await cancelling
        await daemon.wait()
        await daemon.start()
        await wait_all_ended(daemon)
        await daemon.stop()
        assert await check_completions(daemon.home, ["r1"]) == {"r1": "cancelled"}


@pytest.mark.parametrize("mode", ["mode:fork", "mode:stubborn", "mode:deaf"])
async def test_no_process_is_left_of_a_worker_that_forks_and_ignores_sigterm(mode: str) -> None:
    async with daemon_with_odd_model() as daemon:
        await begin(daemon, mode)
        assert workers_of(daemon) != []  # the twin: they can be seen
        await daemon.kill()
        await wait_for_none_left(daemon)


async def test_a_worker_killed_in_the_middle_is_replaced_and_every_answer_comes() -> None:
    async with daemon_with_odd_model() as daemon:
        gate = daemon.base / "gate"
        first = f"mode:gate {gate}"
        asked = completion.StreamCompletion(prompt=first, session_id="s0", request_id="r0")
        async with AsyncClient(daemon.socket) as client:
            accepted = await accept(client, 10, (first, *["mode:slow 6 0.05"] * 9))
            killed = 0
            async for step in client.stream(asked):
                if step.type != "delta" or step.attempt != killed + 1:
                    continue
                if killed == 2:
                    gate.touch()
                    break
                killed += 1
                for pid in workers_of(daemon):
                    with suppress(ProcessLookupError):
                        os.kill(pid, 9)
        await wait_all_ended(daemon)
        await daemon.stop()
        outcomes = await check_completions(daemon.home, accepted)
    assert killed == 2
    assert set(outcomes.values()) == {"completed"}


# The twin: an audit that finds nothing proves nothing


def drop_line(home: Path) -> None:
    path = home / "logs" / "responses" / "s0.jsonl"
    path.write_text("")


def double_line(home: Path) -> None:
    path = home / "logs" / "responses" / "s0.jsonl"
    path.write_text(path.read_text() * 2)


def change_answer(home: Path) -> None:
    path = home / "logs" / "responses" / "s0.jsonl"
    path.write_text(path.read_text().replace("one", "two"))


DOUBLE_END = """
    INSERT INTO log
    SELECT seq + 100, event_id || 'x', kind, name, NULL, NULL, correlation_id, causation_id, actor, node,
           origin_id, hop, time, data, reference, digest, chain
    FROM log WHERE name = 'completion:result'
"""


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (drop_line, "r0 has 0 lines"),
        (double_line, "r0 has 2 lines"),
        (change_answer, "r0 refers to other bytes"),
        ("DELETE FROM log WHERE name = 'completion:result'", "r0 has 0 last events"),
        (DOUBLE_END, "r0 has 2 last events"),
    ],
)
async def test_what_a_kill_could_do_is_found_out(damage: str | Callable[[Path], None], finding: str) -> None:
    async with daemon_with_odd_model() as daemon:
        async with AsyncClient(daemon.socket) as client:
            accepted = await accept(client, 1)
        await wait_all_ended(daemon)
        await daemon.stop()
        await check_completions(daemon.home, accepted)
        if callable(damage):
            damage(daemon.home)
        else:
            await _execute(daemon.database, damage)
        with pytest.raises(AssertionError, match=finding):
            await check_completions(daemon.home, accepted)


ONE_MORE = """
    INSERT INTO token_usage (request_id, attempt, session_id, provider, model, day, prompt_tokens,
        completion_tokens, cached_tokens)
    SELECT request_id, attempt + 9, session_id, provider, model, day, 1, 1, 0 FROM token_usage LIMIT 1
"""


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("DELETE FROM token_usage", "r0 was asked for 1 times, and paid for 0 times"),
        (ONE_MORE, "r0 was asked for 1 times, and paid for 2 times"),
        ("UPDATE token_usage SET completion_tokens = 99", "the ledger has 99 tokens"),
        ("UPDATE completions SET attempts = 5", "r0 had 5 attempts"),
    ],
)
async def test_a_call_too_many_or_not_accounted_for_is_found_out(damage: str, finding: str) -> None:
    async with daemon_with_odd_model() as daemon:
        async with AsyncClient(daemon.socket) as client:
            await accept(client, 1)
        await wait_all_ended(daemon)
        await daemon.stop()
        await check_calls(daemon.home, kills=0)
        await _execute(daemon.database, damage)
        with pytest.raises(AssertionError, match=finding):
            await check_calls(daemon.home, kills=0)


async def _execute(path: Path, sql: str) -> None:
    async with AsyncSQLiteDB(path) as database:
        await database.execute(sql)
