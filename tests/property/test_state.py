"""State against a dictionary: whatever the keys and values, what is read and listed is what was set."""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_daemon.testing import RunningDaemon, running_daemon
from tests.support.scale import scaled

NAMESPACES = ("global", "other")
# Some that sort or match oddly; without NUL, behind which a pattern does not look.
KEYS = ("a", "A", "ab", "a*", "[a]", "%", "_", "\\", "\n", "é", "e\u0301", "\ue000", "\uffff", "🙂", " ")
PATTERNS = (None, "*", "a*", "?", "a?", "*b", "[a]", "[*", "%", "_", "\\", "é*", "*\n", "*🙂*", "a**", "A")
INTEGERS = st.integers(-(2**53), 2**53)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
places = st.tuples(st.sampled_from(NAMESPACES), st.integers(0, 2))
"""Few keys, by their numbers, so that steps meet."""
sets = st.tuples(st.just("set"), places, values)
others = st.tuples(
    st.sampled_from([*["get"] * 6, *["delete"] * 3, *["clear"] * 2, "restart"]), places, st.none()
)
steps = st.lists(sets | others, min_size=20, max_size=50)

Model = dict[tuple[str, str], Any]


@pytest.mark.timeout(scaled(240, 600))
@settings(max_examples=scaled(6, 150))
@given(
    keys=st.permutations(KEYS),
    more=st.sets(st.sampled_from(KEYS), min_size=5),
    steps=steps,
    limit=st.integers(1, 4),
)
async def test_state_is_what_a_dictionary_is(
    keys: Sequence[str], more: AbstractSet[str], steps: Sequence[Any], limit: int
) -> None:
    model: Model = {}
    async with running_daemon() as ksi:
        everywhere = [("set", ("global", keys.index(key)), 0) for key in more]
        for action, (namespace, number), value in [*steps, *everywhere]:
            place = namespace, keys[number]
            if action == "restart":
                await ksi.restart()
                continue
            answer = await done(ksi, action, place, value)
            assert exactly(answer) == exactly(expected(model, action, place, value)), (action, place)
        for pattern, after in zip(PATTERNS, ("", keys[0]) * len(PATTERNS), strict=False):
            await check_list(ksi, model, pattern, limit, after=after)


async def done(ksi: RunningDaemon, action: str, place: tuple[str, str], value: Any) -> Any:
    match action:
        case "set":
            return (await ksi.call_raw("state:set", named(place) | {"value": value}))["status"]
        case "get":
            found = await ksi.call_raw("state:get", named(place))
            return found["found"], found["value"]
        case "delete":
            return (await ksi.call_raw("state:delete", named(place)))["status"]
    return (await ksi.call_raw("state:clear", {"namespace": place[0]}))["keys_deleted"]


def expected(model: Model, action: str, place: tuple[str, str], value: Any) -> Any:
    match action:
        case "set":
            model[place] = value
            return "set"
        case "get":
            return place in model, model.get(place)
        case "delete":
            if place not in model:
                return "not_found"
            del model[place]
            return "deleted"
    gone = [each for each in model if each[0] == place[0]]
    for each in gone:
        del model[each]
    return len(gone)


async def check_list(
    ksi: RunningDaemon, model: Model, pattern: str | None, limit: int, *, after: str | None
) -> None:
    """All pages together are the keys that match, in order."""
    listed = sorted(
        key
        for namespace, key in model
        if namespace == "global" and key > (after or "") and fits(pattern, key)
    )
    found: list[str] = []
    while after is not None:
        page = await ksi.call_raw("state:list", {"pattern": pattern, "limit": limit, "after": after})
        assert page["count"] == len(page["keys"]) <= limit
        found += page["keys"]
        after = page["next"]
    assert found == listed, pattern


def fits(pattern: str | None, key: str) -> bool:
    """Match as a shell does, but that a bracket is itself."""
    words = {"*": ".*", "?": "."}
    regex = "".join(words.get(character, re.escape(character)) for character in pattern or "*")
    return re.fullmatch(regex, key, re.DOTALL) is not None


def named(place: tuple[str, str]) -> dict[str, Any]:
    return {"namespace": place[0], "key": place[1]}


def exactly(value: Any) -> str:
    """Render what tells 1 from 1.0 and from True, and 0.0 from -0.0; the order of names says nothing."""
    if isinstance(value, dict):
        return repr(sorted((name, exactly(each)) for name, each in value.items()))
    return repr([exactly(each) for each in value]) if isinstance(value, list | tuple) else repr(value)


def test_a_model_that_forgets_one_change_is_found_out() -> None:
    """The twin: what is compared differs by a type, a sign and a missing key."""
    model: Model = {}
    assert expected(model, "set", ("global", "a"), 1) == "set"
    assert exactly(expected(model, "get", ("global", "a"), None)) != exactly((True, 1.0))
    assert exactly([0.0]) != exactly([-0.0])
    assert exactly({"a": 1, "b": None}) != exactly({"a": 1})
    assert [fits("a?", key) for key in ("a", "ab", "a\n")] == [False, True, True]
