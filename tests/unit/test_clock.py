"""Time is rendered and read as RFC 3339, to the microsecond."""

import importlib.util
from datetime import UTC, datetime
from typing import Any

import pytest

from ksi_common.clock import SystemClock, format_time, parse_time

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("time_us", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1, "1970-01-01T00:00:00.000001Z"),
        (1_767_225_599 * SECOND + 999_999, "2025-12-31T23:59:59.999999Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (-SECOND, "1969-12-31T23:59:59.000000Z"),
        (-62_135_596_800 * SECOND, "0001-01-01T00:00:00.000000Z"),
        (253_402_300_800 * SECOND - 1, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_time_is_rendered_with_six_decimals_and_z(time_us: int, text: str) -> None:
    assert format_time(time_us) == text
    assert parse_time(text) == time_us


def test_the_same_second_twice_and_another_between_are_each_rendered_right() -> None:
    seconds = [5, 5, 6, 5]
    assert [format_time(second * SECOND)[17:19] for second in seconds] == ["05", "05", "06", "05"]


def fresh_clock_module() -> Any:
    spec = importlib.util.find_spec("ksi_common.clock")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("time_us", [-1, 0, 1])
def test_the_first_time_that_a_process_renders_is_right(time_us: int) -> None:
    assert parse_time(fresh_clock_module().format_time(time_us)) == time_us


@pytest.mark.parametrize(
    "text",
    ["2026-01-31T12:00:00Z", "2026-01-31T14:00:00+02:00", "2026-01-31T12:00:00.000000Z"],
)
def test_an_offset_is_taken_into_account(text: str) -> None:
    assert parse_time(text) == int(datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()) * SECOND


def test_a_time_without_an_offset_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match="has no UTC offset; write it like 2026"):
        parse_time("2026-01-31T12:00:00")


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-31T25:00:00Z"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_time(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_time_that_utc_has_no_year_for_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="before year 1 or after year 9999 in UTC"):
        parse_time(text)


def test_the_clock_of_the_machine_never_runs_backwards() -> None:
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
    assert parse_time(format_time(clock.time_us())) <= clock.time_us()
