"""The first who asks for the end says why; whatever comes later changes nothing."""

import asyncio
import os

import pytest

from ksi_daemon.lifecycle import Lifecycle, Stop


@pytest.fixture
async def lifecycle() -> Lifecycle:
    return Lifecycle("1.0", 5.0, 7, asyncio.get_running_loop().create_future())


async def test_nobody_has_asked_for_the_end_at_first(lifecycle: Lifecycle) -> None:
    assert not lifecycle.stopping.done()


async def test_who_asks_for_the_end_says_why_and_how_long(lifecycle: Lifecycle) -> None:
    lifecycle.stop("SIGTERM", 30)
    assert await lifecycle.stopping == Stop("SIGTERM", 30)


async def test_the_first_who_asks_says_why(lifecycle: Lifecycle) -> None:
    lifecycle.stop("SIGTERM", 30)
    lifecycle.stop("system:shutdown", 0)
    assert await lifecycle.stopping == Stop("SIGTERM", 30)


async def test_what_forces_the_end_is_raised(lifecycle: Lifecycle) -> None:
    lifecycle.fail(OSError("no disk"))
    with pytest.raises(OSError, match="no disk"):
        await lifecycle.stopping


async def test_what_fails_while_it_stops_does_not_change_why(lifecycle: Lifecycle) -> None:
    lifecycle.stop("SIGTERM", 30)
    lifecycle.fail(OSError("no disk"))
    assert await lifecycle.stopping == Stop("SIGTERM", 30)


async def test_the_first_failure_is_the_one_that_is_raised(lifecycle: Lifecycle) -> None:
    lifecycle.fail(OSError("no disk"))
    lifecycle.fail(ValueError("later"))
    lifecycle.stop("SIGTERM", 30)
    with pytest.raises(OSError, match="no disk"):
        await lifecycle.stopping


async def test_it_is_this_process_with_nobody_connected(lifecycle: Lifecycle) -> None:
    assert (lifecycle.pid, lifecycle.connections()) == (os.getpid(), 0)
