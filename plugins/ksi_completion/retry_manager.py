"""Whether an attempt that failed is made again, and when."""

from random import Random
from typing import Final

from ksi_common.events.completion import Failure
from ksi_common.records import record
from ksi_completion.providers.interface import FailureClass, ProviderFailure

RETRIED: Final[frozenset[FailureClass]] = frozenset(("transient", "rate_limited", "stalled"))
"""The others stay what they are: ``invalid`` and ``auth`` until somebody mends them, ``not_deployed`` until
it is installed; and what has an ``unknown_outcome`` may still be at work: another try would be beside it.
"""
SESSION_LOST: Final = "session_lost"
"""The reason of a provider that no longer knows its session: it is told the whole conversation again."""
SESSION_BUSY: Final = "session_busy"
"""The reason where another may be at work on the session yet: it says nothing of the provider."""
FIRST_DELAY_S: Final = 1.0
MAX_DELAY_S: Final = 60.0


@record
class Retry:
    """Try again after ``delay_s``."""

    delay_s: float


class RetryManager:
    """Decide by the class of the failure; full jitter between tries, as AWS recommends against herds."""

    def __init__(self, *, attempts: int, first_delay_s: float = FIRST_DELAY_S, random: Random | None = None):
        self.attempts = attempts
        """Failures that a completion may have, the last one too."""
        self._first_delay_s = first_delay_s
        self._random = random or Random()  # noqa: S311 - jitter, no secret

    def decide(self, failure: ProviderFailure, *, failures: int) -> Retry | None:
        """Give the next try after ``failures`` failed ones, or None where this was the last."""
        if failure.kind not in RETRIED or failures >= self.attempts:
            return None
        return Retry(max(failure.retry_after_s or 0.0, self.delay_s(failures)))

    def delay_s(self, failures: int) -> float:
        """Draw the time until the next try: up to twice as long after each failure, a minute at most."""
        ceiling = min(MAX_DELAY_S, self._first_delay_s * 2 ** min(failures - 1, 20))
        return self._random.uniform(0, ceiling)


def failure_of(error: ProviderFailure) -> Failure:
    """Give what a completion ends with that fails for good."""
    return Failure(reason=error.reason, message=error.message, retryable=error.kind in RETRIED)
