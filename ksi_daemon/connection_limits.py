"""Where one connection has to stop."""

from typing import Final

from ksi_common.errors import KSIError, ResourceExhausted
from ksi_common.records import record

HIGH_WATER: Final = 1024 * 1024
"""Bytes unread by a client, above which it gets no more; the log keeps the rest for it."""
LOW_WATER: Final = 256 * 1024


@record
class ConnectionLimits:
    """Counts and seconds of one connection."""

    in_flight: int = 128
    streams: int = 1024
    partial_line_s: float = 10.0
    unwritable_s: float = 10.0

    def refusal(self, *, stream: bool) -> KSIError:
        """Say why there is no room for another request, or another ``stream``."""
        if stream:
            return ResourceExhausted(f"{self.streams} streams on this connection", retry_after_s=1)
        return ResourceExhausted(
            f"{self.in_flight} requests in flight on this connection",
            reason="in_flight",
            limit=self.in_flight,
            retry_after_s=0.05,
        )
