"""What runs as long as the daemon ends with it, and is awaited."""

import asyncio

import pytest

from ksi_daemon.children import Children


async def forever() -> None:
    await asyncio.Event().wait()


async def test_children_are_cancelled_at_the_end_and_awaited() -> None:
    cleaned = []

    async def run() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            cleaned.append(1)

    async with asyncio.timeout(5), Children() as children:
        task = children.create_task(run())
        await asyncio.sleep(0)
    assert task.cancelled()
    assert cleaned == [1]


async def test_a_child_that_has_not_begun_is_cancelled_too() -> None:
    async with asyncio.timeout(5), Children() as children:
        task = children.create_task(forever())
    assert task.cancelled()


async def test_a_child_that_returns_ends_nothing() -> None:
    async def give() -> int:
        return 5

    async with asyncio.timeout(5), Children() as children:
        other = children.create_task(forever())
        assert await children.create_task(give()) == 5
        assert not other.done()


async def test_a_child_that_raises_ends_all() -> None:
    async def fail() -> None:
        raise OSError("no disk")

    tasks: list[asyncio.Task[None]] = []

    async def run() -> None:
        async with asyncio.timeout(5), Children() as children:
            tasks.append(children.create_task(forever()))
            children.create_task(fail())
            await forever()

    with pytest.raises(ExceptionGroup) as ended:
        await run()
    assert [str(error) for error in ended.value.exceptions] == ["no disk"]
    assert tasks[0].cancelled()


async def test_an_error_of_the_block_ends_the_children() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def run() -> None:
        async with asyncio.timeout(5), Children() as children:
            tasks.append(children.create_task(forever()))
            raise ValueError("oh")

    with pytest.raises(ExceptionGroup) as ended:
        await run()
    assert [str(error) for error in ended.value.exceptions] == ["oh"]
    assert tasks[0].cancelled()


async def test_children_can_be_stopped_before_the_end() -> None:
    async with asyncio.timeout(5), Children() as children:
        task = children.create_task(forever())
        children.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_what_has_ended_is_not_kept() -> None:
    async def nothing() -> None:
        pass

    async with asyncio.timeout(5), Children() as children:
        for _ in range(10):
            await children.create_task(nothing())
        await asyncio.sleep(0)
        assert len(children._running) == 0
