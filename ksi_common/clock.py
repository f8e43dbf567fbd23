"""Time, read in one place so that tests can own it."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """What the daemon needs of time."""

    def time_us(self) -> int:
        """Give the wall clock: microseconds since 1970, UTC."""
        ...

    def monotonic(self) -> float:
        """Give seconds of a clock that never jumps."""
        ...


class SystemClock:
    """The machine's clocks."""

    def time_us(self) -> int:
        """Give the wall clock: microseconds since 1970, UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Give seconds of a clock that never jumps."""
        return time.monotonic()


def format_time(time_us: int) -> str:
    """Render microseconds since 1970 as RFC 3339, always with six decimals and ``Z``."""
    seconds, micros = divmod(time_us, 1_000_000)
    return f"{_format_second(seconds)}.{micros:06d}Z"


def parse_time(text: str) -> int:
    """Read RFC 3339 into microseconds since 1970; raise ValueError where it has no offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} has no UTC offset; write it like 2026-01-31T12:00:00Z")
    try:
        return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
    except OverflowError:
        raise ValueError(f"time {text!r} is before year 1 or after year 9999 in UTC") from None


class _SecondCache:
    """The last second rendered: consecutive events nearly always share it."""

    __slots__ = ("pair",)

    def __init__(self) -> None:
        self.pair = (0, "1970-01-01T00:00:00")
        """Number and text in one value: another thread never sees the one without the other."""


_last = _SecondCache()


def _format_second(second: int) -> str:
    """Render seconds since 1970 as RFC 3339 without its offset."""
    known, text = _last.pair
    if second != known:
        text = datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()
        _last.pair = second, text
    return text
