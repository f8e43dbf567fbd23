"""The version that is written into an event's data is the one that is read, whatever else they say."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from ksi_daemon.event_versions import FIELD, stamped, version_of


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(("a", "b", "version", "$versions", '"$version":7}')), inner)


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(-9, 9) | st.sampled_from((FIELD, '"$version":7}', ',"$version":7')),
    lambda inner: st.lists(inner, max_size=3) | objects(inner),
    max_leaves=6,
)


@given(data=objects(values | objects(st.just({FIELD: 7}))), version=st.integers(2, 1000))
def test_a_stamp_is_read_as_it_was_written(data: dict[str, Any], version: int) -> None:
    stored = orjson.dumps(data)
    assert version_of(stored) == 1
    both = stamped(stored, version)
    assert version_of(both) == version
    assert orjson.loads(both) == {**data, FIELD: version}
