"""Causes and depths: whatever ids clients chose, it ends, and nothing is lost."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from ksi_monitor.correlations import (
    MAX_NESTED,
    REPLY_BYTES,
    Correlation,
    Node,
    branches,
    find_causes,
    fitting,
)


def node(seq: int, event_id: str, cause: str | None = None) -> Node:
    return Node(seq, event_id, "demo:told", "notification", cause, "owner", None, seq * 1000)


def depths(*nodes: Node) -> dict[str, int]:
    find_causes(nodes)
    return {each.event_id: each.depth for each in nodes}


def nested(nodes: Sequence[Node]) -> tuple[list[tuple[str, int, int]], int, bool]:
    """List (event id, depth, nesting) of a tree, in any order, and what else is said of it."""
    find_causes(nodes)
    top, count, cut = branches(Correlation(list(nodes)))
    found: list[tuple[str, int, int]] = []
    level = [branch.model_dump() for branch in top]
    nesting = 0
    while level:
        found += [(branch["event_id"], branch["depth"], nesting) for branch in level]
        level = [child for branch in level for child in branch["children"]]
        nesting += 1
    return found, count, cut


def test_a_depth_is_that_of_the_cause_and_one() -> None:
    assert depths(node(1, "a"), node(2, "b", "a"), node(3, "c", "b"), node(4, "d", "a")) == {
        "a": 0, "b": 1, "c": 2, "d": 1,
    }  # fmt: skip


def test_a_cause_may_be_stored_after_what_it_led_to() -> None:
    """A request whose handler tells something in a commit of its own has its row written last."""
    assert depths(node(1, "told", "asked"), node(2, "asked")) == {"told": 1, "asked": 0}


def test_a_cause_in_another_correlation_is_none_here() -> None:
    assert depths(node(1, "a", "elsewhere"), node(2, "b", "a")) == {"a": 0, "b": 1}


def test_a_circle_is_cut_at_its_first_event() -> None:
    assert depths(node(1, "x", "a"), node(2, "a", "c"), node(3, "b", "a"), node(4, "c", "b")) == {
        "x": 1, "a": 0, "b": 1, "c": 2,
    }  # fmt: skip
    assert depths(node(1, "self", "self")) == {"self": 0}


def test_a_long_chain_ends_and_keeps_its_depths() -> None:
    chain = [node(n, str(n), str(n + 1)) for n in range(5000)]
    assert depths(*chain)["0"] == 4999


def test_a_tree_is_nested_down_to_a_level_and_flat_below_it() -> None:
    found, count, cut = nested([node(n, str(n), str(n - 1)) for n in range(1, 101)])
    assert (count, cut) == (100, False)
    assert sorted(found, key=lambda each: each[1]) == [
        (str(n + 1), n, min(n, MAX_NESTED)) for n in range(100)
    ]


def test_a_tree_that_has_no_room_says_so_and_has_no_orphans() -> None:
    many = [node(1, "a"), *(node(n, "x" * 100 + str(n), "a") for n in range(2, 8000))]
    found, count, cut = nested(many)
    assert cut
    assert len(found) == count < len(many)
    assert sum(each.size for each in fitting(many)[0]) <= REPLY_BYTES


ids = st.sampled_from("abcdef")


@given(st.lists(st.tuples(ids, st.none() | ids | st.just("elsewhere")), unique_by=lambda pair: pair[0]))
def test_every_event_is_in_the_tree_once_below_its_cause_or_at_the_top(
    pairs: list[tuple[str, str | None]],
) -> None:
    nodes = [node(seq, event_id, cause) for seq, (event_id, cause) in enumerate(pairs, 1)]
    found, count, cut = nested(nodes)
    assert sorted(event_id for event_id, _, _ in found) == sorted(event_id for event_id, _ in pairs)
    assert (count, cut) == (len(pairs), False)
    assert all(depth == nesting for _, depth, nesting in found)
    by_id = {each.event_id: each for each in nodes}
    for each in nodes:
        if each.parent is not None:
            assert each.parent is by_id[each.causation_id or ""]
            assert each.depth == each.parent.depth + 1
        elif each.causation_id in by_id:
            assert in_circle(each, dict(pairs)), "only a circle is cut"


def in_circle(start: Node, causes: dict[str, str | None]) -> bool:
    above, seen = causes.get(start.event_id), set()
    while above is not None and above not in seen:
        if above == start.event_id:
            return True
        seen.add(above)
        above = causes.get(above)
    return False
