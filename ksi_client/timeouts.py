"""How long a client waits."""

from typing import Final

from ksi_common.errors import DeadlineExceeded
from ksi_common.frames import Call

CONNECT_TIMEOUT_S: Final = 10.0
"""How long a connection is tried for."""
TIMEOUT_S: Final = 30.0
"""How long a request may take where the caller does not say."""
GRACE_S: Final = 0.5
"""What a client waits longer than the daemon was given, for its word about it to arrive."""


def late(call: Call) -> DeadlineExceeded:
    """Make the error of a request that the daemon gave no word about in time."""
    return DeadlineExceeded(
        f"no answer to {call.event!r} within {call.timeout_s:g} s; it may or may not have been done",
        reason="no_answer",
    )
