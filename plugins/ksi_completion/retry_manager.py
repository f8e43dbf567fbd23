"""Whether an attempt that failed is made again, and when."""

from dataclasses import dataclass
from random import Random
from typing import Final

from ksi_completion.providers.interface import FailureClass, ProviderFailure

RETRIED: Final[frozenset[FailureClass]] = frozenset(("transient", "rate_limited", "stalled"))
FIRST_DELAY_S: Final = 1.0
MAX_DELAY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after ``delay_s``."""

    delay_s: float


class RetryManager:
    """Decide by the class of the failure; full jitter between tries, as AWS recommends against herds."""

    def __init__(self, *, attempts: int, random: Random | None = None) -> None:
        self._attempts = attempts
        self._random = random or Random()  # noqa: S311 - jitter, no secret

    def decide(self, failure: ProviderFailure, *, failures: int) -> Retry | None:
        """Give the next try after ``failures`` failed ones, or None where this was the last."""
        if failure.kind not in RETRIED or failures >= self._attempts:
            return None
        ceiling = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (failures - 1))
        return Retry(max(failure.retry_after_s or 0.0, self._random.uniform(0, ceiling)))
