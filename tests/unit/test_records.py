"""Records behave as frozen dataclasses do, but for what the type checker does in their place."""

import pickle
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_common.records import record


@record
class Point:
    x: int
    y: int = 0


@dataclass(frozen=True, slots=True)
class Frozen:
    x: int
    y: int = 0


@record
class Named(Point):
    name: str = "origin"


@record(eq=False)
class Itself:
    x: int


@record(kw_only=True)
class Keyed:
    values: list[int] = field(default_factory=list)


@record
class Odd:
    x: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd)

    def __hash__(self) -> int:
        return 7

    def __repr__(self) -> str:
        return "odd"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=2))
def test_it_compares_and_hashes_as_a_frozen_dataclass(pairs: Sequence[tuple[int, int]]) -> None:
    one, other = (Point(*pair) for pair in pairs)
    assert (one == other) == (Frozen(*pairs[0]) == Frozen(*pairs[1]))
    assert hash(one) == hash(Frozen(*pairs[0]))
    assert repr(one) == repr(Frozen(*pairs[0])).replace("Frozen", "Point")


def test_it_is_a_dataclass_with_slots() -> None:
    assert [each.name for each in fields(Named)] == ["x", "y", "name"]
    assert replace(Point(1, 2), y=3) == Point(1, 3)
    assert pickle.loads(pickle.dumps(Named(1))) == Named(1)
    assert not hasattr(Point(1), "__dict__")
    assert is_dataclass(Point)


def test_only_the_type_checker_keeps_it_from_being_changed() -> None:
    point = Point(1)
    point.x = 2  # type: ignore[misc]  # the guard: mypy would call this comment unused
    assert point == Point(2)
    with pytest.raises(FrozenInstanceError):
        Frozen(1).x = 2  # type: ignore[misc]


def test_another_class_with_the_same_fields_is_not_equal() -> None:
    values: Sequence[Any] = (Point(1), Frozen(1), Named(1))
    assert [value == Point(1) for value in values] == [True, False, False]


def test_where_it_says_so_each_is_equal_to_itself_only() -> None:
    one = Itself(1)
    assert one == one
    assert one != Itself(1)
    assert len({one, Itself(1)}) == 2


def test_a_default_is_made_for_each() -> None:
    Keyed().values.append(1)
    assert Keyed().values == []
    with pytest.raises(TypeError):
        Keyed([1])  # type: ignore[call-arg]


def test_what_a_class_says_itself_stays() -> None:
    assert Odd(1) == Odd(2)
    assert repr(Odd(1)) == "odd"
    assert hash(Odd(1)) == 7
