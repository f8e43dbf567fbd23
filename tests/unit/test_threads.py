"""Plain functions run beside the loop: few threads, the caller's context, and no waiting at exit."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NoReturn

import pytest

from ksi_common.errors import Unavailable
from ksi_daemon.threads import THREADS, Threads
from tests.support.waiting import eventually

asked_by: ContextVar[str] = ContextVar("asked_by", default="nobody")


class Gate:
    """Work that says when it has begun, and ends when it is let go."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.ended = asyncio.Event()

    def work(self) -> None:
        self._loop.call_soon_threadsafe(self.begun.put_nowait, threading.current_thread().name)
        self._open.wait(5)
        self._loop.call_soon_threadsafe(self.ended.set)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture(autouse=True)
def _no_thread_raises() -> Iterator[None]:
    """Fail a test that leaves an error in a thread."""
    raised: list[object] = []
    before, threading.excepthook = threading.excepthook, raised.append
    yield
    threading.excepthook = before
    assert raised == []


async def test_a_function_gives_what_it_returns(threads: Threads) -> None:
    assert await threads.run(lambda: 5) == 5


async def test_a_function_runs_in_a_thread_of_ours(threads: Threads) -> None:
    name = await threads.run(lambda: threading.current_thread().name)
    assert name == "ksi-handler-1"


async def test_a_wrapped_function_is_given_its_arguments(threads: Threads) -> None:
    def join(*parts: str, end: str) -> str:
        return "-".join(parts) + end

    assert await threads.wrap(join)("a", "b", end="!") == "a-b!"


async def test_a_wrapped_function_keeps_its_name(threads: Threads) -> None:
    def greet() -> None:
        """Say hello."""

    wrapped = threads.wrap(greet)
    assert (wrapped.__name__, wrapped.__doc__) == ("greet", "Say hello.")


async def test_a_function_has_the_context_of_who_asked(threads: Threads) -> None:
    token = asked_by.set("me")
    assert await threads.run(asked_by.get) == "me"
    asked_by.reset(token)
    assert await threads.run(asked_by.get) == "nobody"


async def test_what_a_function_sets_in_its_context_stays_there(threads: Threads) -> None:
    await threads.run(lambda: asked_by.set("it"))
    assert asked_by.get() == "nobody"
    assert await threads.run(asked_by.get) == "nobody"


async def test_no_thread_is_started_before_it_is_needed(threads: Threads) -> None:
    assert threads.statistics == {"threads": 0, "work": 0}


async def test_an_idle_thread_is_used_again(threads: Threads) -> None:
    for _ in range(20):
        await threads.run(lambda: None)
    assert threads.statistics == {"threads": 1, "work": 0}


async def test_there_are_eight_threads_at_most(threads: Threads, gate: Gate) -> None:
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(THREADS + 4):
            group.create_task(threads.run(gate.work))
        names = {await gate.begun.get() for _ in range(THREADS)}
        assert threads.statistics == {"threads": THREADS, "work": THREADS + 4}
        assert gate.begun.empty()
        gate.open()
    assert len(names) == THREADS == 8
    assert threads.statistics == {"threads": THREADS, "work": 0}


async def test_what_waits_for_a_thread_runs_when_one_is_free(gate: Gate) -> None:
    threads = Threads(1)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(threads.run(gate.work))
        await gate.begun.get()
        waiting = group.create_task(threads.run(lambda: "run"))
        gate.open()
    assert waiting.result() == "run"


async def test_a_cancelled_await_leaves_the_function_running(threads: Threads, gate: Gate) -> None:
    async with asyncio.timeout(30):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(threads.run(gate.work))
            await gate.begun.get()
            task.cancel()
        assert task.cancelled()
        assert threads.statistics["work"] == 1
        gate.open()
        await gate.ended.wait()
        assert await threads.run(lambda: "next") == "next"

    async def told() -> bool:  # by its thread, a moment after it has ended
        return threads.statistics["work"] == 0

    await eventually(told, patience_s=30)


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def function() -> NoReturn:
        raise error

    return function


@pytest.mark.parametrize(
    "error",
    [ValueError("oh"), RecursionError(), SystemExit(3), KeyboardInterrupt(), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
async def test_what_a_function_raises_is_raised_where_it_is_awaited(
    threads: Threads, error: BaseException
) -> None:
    caught: BaseException | None = None
    try:
        await threads.run(raising(error))
    except BaseException as raised:  # noqa: BLE001 -- SystemExit is among them
        caught = raised
    assert caught is error
    assert await threads.run(lambda: "alive") == "alive"


@pytest.mark.parametrize(
    "error",
    [StopIteration(5), GeneratorExit(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
async def test_what_would_mean_something_else_to_an_await_is_wrapped(
    threads: Threads, error: BaseException
) -> None:
    with pytest.raises(RuntimeError, match=f"a handler raised {type(error).__name__}") as wrapped:
        await threads.run(raising(error))
    assert wrapped.value.__cause__ is error


def test_a_thread_outlives_a_loop_that_closed_before_its_function_ended() -> None:
    threads, opened, names = Threads(1), threading.Event(), []

    async def abandon() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            names.append(threading.current_thread())
            loop.call_soon_threadsafe(begun.set)
            opened.wait(5)

        task = loop.create_task(threads.run(work))
        await begun.wait()
        task.cancel()

    asyncio.run(abandon())
    opened.set()
    (thread,) = names
    thread.join(5)
    assert not thread.is_alive()


def no_thread(_: threading.Thread) -> NoReturn:
    raise RuntimeError("can't start new thread")


async def test_work_is_refused_where_no_thread_can_be_had_and_done_once_one_can(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as poor:
        poor.setattr(threading.Thread, "start", no_thread)
        for _ in range(THREADS):
            with pytest.raises(Unavailable, match="no thread can be started"):
                await threads.run(lambda: 5)
    async with asyncio.timeout(5):
        assert await threads.run(lambda: 5) == 5
    assert threads.statistics == {"threads": 1, "work": 0}


async def test_the_threads_that_run_do_the_work_where_no_other_can_be_had(
    threads: Threads, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(threads.run(gate.work))
        await gate.begun.get()
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        second = group.create_task(threads.run(lambda: 5))
        gate.open()
        assert await second == 5


def test_the_process_does_not_wait_for_a_function_at_its_end() -> None:
    source = """
import asyncio, threading
from ksi_daemon.threads import Threads

async def main():
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    def work():
        loop.call_soon_threadsafe(begun.set)
        threading.Event().wait()
    task = loop.create_task(Threads().run(work))
    await begun.wait()
    task.cancel()

asyncio.run(main())
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=15, check=True
    )
    assert done.stdout == "ended\n"
