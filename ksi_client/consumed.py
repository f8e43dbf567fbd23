"""What a named consumer is given, and how it says what became of it."""

from collections.abc import Awaitable, Callable
from typing import Any

from ksi_common.bus import Delivered
from ksi_common.records import record


@record(kw_only=True)
class Consumed(Delivered):
    """An event for a named consumer. One that is neither acked nor given back comes again."""

    attempt: int
    """The how-manieth time it is given, as far as is known; 1 the first time."""
    report: Callable[..., Awaitable[Any]]

    async def ack(self) -> None:
        """Say that it is done; returns once that is on disk."""
        await self.report()

    async def nak(
        self, delay_s: float | None = None, *, reason: str | None = None, give_up: bool = False
    ) -> None:
        """Give it back: it comes again after ``delay_s`` seconds, by default more with each attempt.

        After too many attempts, or at once with ``give_up``, it becomes a dead letter; ``reason`` is for
        whoever reads that.
        """
        await self.report(delay_s=delay_s, reason=reason, give_up=give_up)


@record(kw_only=True)
class BlockingConsumed(Delivered):
    """An event for a named consumer, blocking. One that is neither acked nor given back comes again."""

    attempt: int
    """The how-manieth time it is given, as far as is known; 1 the first time."""
    report: Callable[..., object]

    def ack(self) -> None:
        """Say that it is done; returns once that is on disk."""
        self.report()

    def nak(self, delay_s: float | None = None, *, reason: str | None = None, give_up: bool = False) -> None:
        """Give it back, as in AsyncClient."""
        self.report(delay_s=delay_s, reason=reason, give_up=give_up)
