"""Whatever is done to state, graph and queues: the log, replayed, is what is live, byte for byte."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_common.errors import OperationalError
from ksi_common.events.replay import Replay
from ksi_common.messages import Request
from ksi_daemon.testing import running_daemon
from tests.support.histories import requests, sweeps
from tests.support.scale import scaled

TABLES = {
    "state", "entities", "entity_properties", "relationships", "relationship_properties", "queue_items",
}  # fmt: skip


async def differences(history: Sequence[Request[Any]]) -> Sequence[str]:
    async with running_daemon(settings={"load_plugins": "state,graph,queues,events"}) as ksi:
        for request in history:
            with suppress(OperationalError):  # what cannot be done is refused, and tells nothing
                await ksi.bus.call(request)
        tables = [table async for step in ksi.bus.stream(Replay()) if step.done for table in step.tables]
        assert {table.table for table in tables} == TABLES
        return [table.difference for table in tables if table.difference]


@pytest.mark.timeout(scaled(240, 900))
@settings(max_examples=scaled(10, 300))
@given(history=st.lists(requests | sweeps, max_size=40))
def test_the_log_replayed_is_what_is_live(history: Sequence[Request[Any]]) -> None:
    assert asyncio.run(differences(history)) == []
