"""A clock of one's own."""


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self, time_us: int = 1_700_000_000_000_000) -> None:
        self._time_us = time_us
        self._monotonic = 1000.0

    def time_us(self) -> int:
        """Give the wall clock: microseconds since 1970."""
        return self._time_us

    def monotonic(self) -> float:
        """Give seconds that only ``advance`` moves."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._monotonic += seconds
        self._time_us += int(seconds * 1_000_000)

    def jump(self, seconds: float) -> None:
        """Set the wall clock forwards or back, as an administrator would."""
        self._time_us += int(seconds * 1_000_000)
