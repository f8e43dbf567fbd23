"""An envelope is in force for what runs within it, in its task and in the threads that it starts."""

import asyncio
from asyncio import TaskGroup

import pytest

from ksi_common.envelope import (
    EventEnvelope,
    EventMetadata,
    StoredEvent,
    current_envelope,
    event_context,
    reset_current,
    set_current,
)


def envelope(event_id: str = "e1") -> EventEnvelope:
    return EventEnvelope("state:set", {}, event_id, "c1", causation_id="e0", hop=2, traceparent="t")


def test_metadata_is_the_envelope_without_its_data() -> None:
    assert envelope().metadata == EventMetadata("e1", "c1", "e0", "owner", 2, "t")


def test_outside_of_any_event_there_is_none() -> None:
    assert current_envelope() is None


def test_an_envelope_is_in_force_within_its_context_only() -> None:
    outer, inner = envelope("outer"), envelope("inner")
    with event_context(outer) as entered:
        assert entered is outer
        with event_context(inner):
            assert current_envelope() is inner
        assert current_envelope() is outer
    assert current_envelope() is None


def test_an_error_leaves_its_context_too() -> None:
    with pytest.raises(ZeroDivisionError), event_context(envelope()):
        raise ZeroDivisionError
    assert current_envelope() is None


def test_it_can_be_set_and_reset_without_a_block() -> None:
    token = set_current(envelope())
    assert current_envelope() is not None
    reset_current(token)
    assert current_envelope() is None


async def test_tasks_and_threads_started_within_inherit_it() -> None:
    async def of_task() -> EventEnvelope | None:
        return current_envelope()

    mine = envelope()
    with event_context(mine):
        async with TaskGroup() as tasks:
            task = tasks.create_task(of_task())
        assert task.result() is mine
        assert await asyncio.to_thread(current_envelope) is mine


async def test_siblings_do_not_see_each_other() -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def one() -> None:
        with event_context(envelope()):
            entered.set()
            await left.wait()

    async def other() -> EventEnvelope | None:
        await entered.wait()
        left.set()
        return current_envelope()

    async with asyncio.timeout(5), TaskGroup() as tasks:
        tasks.create_task(one())
        result = tasks.create_task(other())
    assert result.result() is None


def test_a_stored_event_tells_its_time_as_the_wire_does() -> None:
    event = StoredEvent("a:b", b"{}", "e", "c", None, "owner", 0, 1_000_001)
    assert event.time == "1970-01-01T00:00:01.000001Z"
