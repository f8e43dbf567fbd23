"""Ids sort in the order made; a name can be part of a path and nothing else."""

import pytest

from ksi_common.ids import id_source, is_name, new_id


def test_ids_of_one_source_sort_in_the_order_made() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


def test_sources_sort_by_the_time_they_were_started() -> None:
    earlier, later = id_source(start_ms=1_000_000), id_source(start_ms=1_000_001)
    assert [earlier() for _ in range(100)][-1] < later()


def test_two_sources_of_the_same_millisecond_share_no_id() -> None:
    one, other = id_source(start_ms=7), id_source(start_ms=7)
    assert not {one() for _ in range(100)} & {other() for _ in range(100)}


def test_an_id_is_26_hex_digits() -> None:
    assert len(new_id()) == 26
    assert set(new_id()) <= set("0123456789abcdef")


@pytest.mark.parametrize("name", ["a", "0", "a.b-c_d", "A" * 128])
def test_letters_digits_dots_dashes_and_underscores_make_a_name(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-rf", "_x", "a/b", "a\\b", "a b", "a\n", "a\0", "é", "A" * 129]
)
def test_what_could_leave_a_folder_or_hide_in_it_is_no_name(name: str) -> None:
    assert not is_name(name)
