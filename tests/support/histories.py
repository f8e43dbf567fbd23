"""Histories of everything that can be made of the log again: state, graph and queues."""

from typing import Any

from hypothesis import strategies as st

from ksi_common.events.async_state import Delete as DeleteQueue
from ksi_common.events.async_state import ExpireQueue, Pop, Push, Sweep
from ksi_common.events.graph import (
    BulkCreateEntities,
    CreateEntity,
    CreateRelationship,
    DeleteEntity,
    DeleteRelationship,
    NewEntity,
    UpdateEntity,
)
from ksi_common.events.state import Clear, Delete, Set
from ksi_common.messages import Request

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
properties = st.dictionaries(names, st.none() | st.booleans() | numbers | texts, max_size=2)
ids = st.sampled_from("abcd")
kinds = st.sampled_from("xy")
soon = st.none() | st.sampled_from([0.0, 0.001, 900.0])

of_state: st.SearchStrategy[Request[Any]] = st.one_of(
    st.builds(Set, namespace=names, key=keys, value=values, metadata=metadata),
    st.builds(Delete, namespace=names, key=keys),
    st.builds(Clear, namespace=names),
)
of_graph: st.SearchStrategy[Request[Any]] = st.one_of(
    st.builds(CreateEntity, type=kinds, id=ids, properties=properties),
    st.builds(
        BulkCreateEntities,
        entities=st.lists(
            st.builds(NewEntity, type=kinds, id=ids, properties=properties), min_size=1, max_size=3
        ),
    ),
    st.builds(UpdateEntity, id=ids, properties=properties),
    st.builds(UpdateEntity, id=ids, remove=st.lists(names, max_size=2)),
    st.builds(DeleteEntity, id=ids),
    st.builds(CreateRelationship, type=kinds, from_=ids, to=ids, properties=properties),
    st.builds(DeleteRelationship, type=kinds, from_=ids, to=ids),
)
of_queues: st.SearchStrategy[Request[Any]] = st.one_of(
    st.builds(Push, key=keys, namespace=names, data=values, ttl_seconds=soon),
    st.builds(Push, key=keys, namespace=names, data=values, ttl_seconds=soon),
    st.builds(Pop, key=keys, namespace=names),
    st.builds(DeleteQueue, key=keys, namespace=names),
    st.builds(ExpireQueue, key=keys, namespace=names, ttl_seconds=st.sampled_from([0.0, 0.001, 900.0])),
)
requests = of_state | of_graph | of_queues
sweeps = st.builds(Sweep)
