"""Items that come while the thread is busy are its next piece of work."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from ksi_completion.batches import Batches


async def test_what_comes_in_a_turn_and_while_the_thread_is_busy_is_done_together() -> None:
    pieces: list[list[int]] = []
    begun, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(items: Sequence[int]) -> Sequence[int | Exception]:
        pieces.append(list(items))
        loop.call_soon_threadsafe(begun.set)
        gate.wait(5)
        return [item * 2 for item in items]

    with ThreadPoolExecutor(1) as thread:
        batches = Batches(thread, work)
        first = [batches.put(1), batches.put(2)]
        await begun.wait()
        later = [batches.put(3), batches.put(4), batches.put(5)]
        later[1].cancel()
        gate.set()
        assert [await future for future in (*first, later[0], later[2])] == [2, 4, 6, 10]
    assert pieces == [[1, 2], [3, 4, 5]]


async def test_an_outcome_that_is_an_error_is_its_own_item_s() -> None:
    with ThreadPoolExecutor(1) as thread:
        batches: Batches[int, int] = Batches(thread, lambda items: [ValueError("no"), *items[1:]])
        bad, good = batches.put(1), batches.put(2)
        assert await good == 2
        with pytest.raises(ValueError, match="no"):
            await bad


async def test_a_bug_is_met_by_the_item_that_has_it_and_by_no_other() -> None:
    def work(items: Sequence[int]) -> Sequence[int | Exception]:
        if 2 in items:
            raise RuntimeError("a bug")
        return list(items)

    with ThreadPoolExecutor(1) as thread:
        batches: Batches[int, int] = Batches(thread, work)
        one, two, three = (batches.put(item) for item in (1, 2, 3))
        assert (await one, await three) == (1, 3)
        with pytest.raises(RuntimeError, match="a bug"):
            await two


async def test_what_another_batch_s_end_took_along_is_begun_once() -> None:
    pieces: list[list[int]] = []

    def work(items: Sequence[int]) -> Sequence[int | Exception]:
        pieces.append(list(items))
        return list(items)

    with ThreadPoolExecutor(1) as thread:
        batches = Batches(thread, work)
        one = batches.put(1)
        batches._begin()  # as the end of a batch does, before the turn is over
        assert await one == 1
        assert await batches.put(2) == 2
    assert pieces == [[1], [2]]
