"""Whatever is set, deleted and cleared: the log, replayed, is the state, byte for byte."""

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_common.events.replay import Replay
from ksi_common.events.state import Clear, Delete, Set
from ksi_daemon.testing import running_daemon
from tests.support.scale import scaled

names = st.sampled_from(("a", "b"))
keys = st.sampled_from(("a", "b", "a:b", "é", "😀"))
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
metadata = st.none() | st.dictionaries(texts, values, max_size=2)
requests = st.one_of(
    st.builds(Set, namespace=names, key=keys, value=values, metadata=metadata),
    st.builds(Delete, namespace=names, key=keys),
    st.builds(Clear, namespace=names),
)


async def differences(history: Sequence[Set | Delete | Clear]) -> Sequence[str]:
    async with running_daemon(settings={"load_plugins": "state,events"}) as ksi:
        for request in history:
            await ksi.bus.call(request)
        tables = [table async for step in ksi.bus.stream(Replay()) if step.done for table in step.tables]
        assert [table.table for table in tables] == ["state"]
        return [table.difference for table in tables if table.difference]


@settings(max_examples=scaled(15, 300))
@given(history=st.lists(requests, max_size=30))
def test_the_log_replayed_is_the_state(history: Sequence[Set | Delete | Clear]) -> None:
    assert asyncio.run(differences(history)) == []
