"""The breadcrumb names the plugin whose code is running, and nobody while it waits."""

import asyncio
import threading
from pathlib import Path

import pytest

from ksi_common.envelope import EventEnvelope
from ksi_daemon.breadcrumb import SLOTS, Breadcrumb
from ksi_daemon.outcomes import Endpoint, Outcome, Send


def named(path: Path) -> str:
    return path.read_bytes().strip(b"\0").decode()


def envelope() -> EventEnvelope:
    return EventEnvelope("a:b", {}, "1", "1")


async def ignore(_: Outcome) -> None:
    """Nobody waits."""


def test_it_names_who_is_at_work_and_nobody_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "breadcrumb"
    with Breadcrumb(path) as crumb:
        assert crumb.during("hello", lambda: named(path)) == "hello"
        assert named(path) == ""
    assert not path.exists()


def test_it_names_nobody_after_an_action_that_raised(tmp_path: Path) -> None:
    path = tmp_path / "breadcrumb"
    with Breadcrumb(path) as crumb:
        with pytest.raises(ZeroDivisionError):
            crumb.during("hello", lambda: 1 // 0)
        assert named(path) == ""


def test_what_runs_within_what_is_run_in_a_thread_takes_no_mark_away(tmp_path: Path) -> None:
    path = tmp_path / "breadcrumb"
    with Breadcrumb(path) as crumb:

        def outer() -> str:
            crumb.in_thread("inner", lambda: None)()
            return named(path)

        assert crumb.in_thread("outer", outer)() == "outer"
        assert named(path) == ""


def test_threads_that_have_done_their_work_keep_no_mark_from_others(tmp_path: Path) -> None:
    path = tmp_path / "breadcrumb"
    marked, over = threading.Barrier(SLOTS + 1), threading.Event()

    with Breadcrumb(path) as crumb:

        def old() -> None:
            crumb.in_thread("old", lambda: None)()
            marked.wait()
            over.wait()  # or its identity would be the next thread's

        threads = [threading.Thread(target=old) for _ in range(SLOTS)]
        for thread in threads:
            thread.start()
        marked.wait()
        try:
            assert crumb.in_thread("new", lambda: named(path))() == "new"
        finally:
            over.set()
            for thread in threads:
                thread.join()


async def test_a_handler_that_waits_is_not_named_and_is_named_again_when_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "breadcrumb"
    seen: list[str] = []
    going_on = asyncio.Event()
    begun = asyncio.Event()

    async def handler(_: EventEnvelope, __: Send) -> None:
        seen.append(named(path))
        begun.set()
        await going_on.wait()
        seen.append(named(path))

    with Breadcrumb(path) as crumb:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_run(crumb.around("slow", handler)))
            await begun.wait()
            seen.append(named(path))
            going_on.set()
    assert seen == ["slow", "", "slow"]


async def test_a_cancelled_handler_cleans_up_and_its_error_comes_through(tmp_path: Path) -> None:
    cleaned: list[str] = []
    path = tmp_path / "breadcrumb"

    async def handler(_: EventEnvelope, __: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(named(path))

    with Breadcrumb(path) as crumb:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await crumb.around("stuck", handler)(envelope(), ignore)
        assert cleaned == ["stuck"]
        assert named(path) == ""


async def test_outside_its_block_marking_does_nothing(tmp_path: Path) -> None:
    crumb = Breadcrumb(tmp_path / "breadcrumb")
    assert crumb.during("hello", lambda: 1) == 1
    assert not (tmp_path / "breadcrumb").exists()


async def _run(endpoint: Endpoint) -> None:
    await endpoint(envelope(), ignore)
