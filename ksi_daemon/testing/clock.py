"""A clock of one's own."""

from collections.abc import Callable
from typing import Final

ROUNDING_S: Final = 1e-6
"""What sums of seconds may be off."""


class FakeAlarm:
    """A call that is to come when the clock was moved there."""

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Do not call."""
        self.cancelled = True


class FakeClock:
    """A clock that stands still until it is moved; the daemon's timers wait for it, too."""

    def __init__(self, time_us: int = 1_700_000_000_000_000) -> None:
        self._time_us = time_us
        self._monotonic = 1000.0
        self._alarms: list[FakeAlarm] = []

    def time_us(self) -> int:
        """Give the wall clock: microseconds since 1970."""
        return self._time_us

    def monotonic(self) -> float:
        """Give seconds that only ``advance`` moves."""
        return self._monotonic

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> FakeAlarm:
        """Call when so many seconds were let pass."""
        self._alarms = [alarm for alarm in self._alarms if not alarm.cancelled]
        self._alarms.append(FakeAlarm(self._monotonic + delay_s, callback))
        return self._alarms[-1]

    def advance(self, seconds: float) -> None:
        """Let time pass; timers that come due fire as soon as the loop turns."""
        self._monotonic += seconds
        self._time_us += round(seconds * 1_000_000)
        due = [alarm for alarm in self._alarms if alarm.when <= self._monotonic + ROUNDING_S]
        for alarm in sorted(due, key=lambda alarm: alarm.when):
            if not alarm.cancelled:
                alarm.cancel()
                alarm.callback()

    def jump(self, seconds: float) -> None:
        """Set the wall clock forwards or back, as an administrator would."""
        self._time_us += round(seconds * 1_000_000)
