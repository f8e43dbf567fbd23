"""The breadcrumb names the plugin whose code is running, and nobody while it waits."""

import asyncio
from pathlib import Path

import pytest

from ksi_common.envelope import EventEnvelope
from ksi_daemon.breadcrumb import Breadcrumb
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
