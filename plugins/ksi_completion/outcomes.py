"""The three ways in which a completion ends."""

from dataclasses import dataclass
from typing import Literal

from ksi_common.events.completion import Failure, Proof
from ksi_completion.providers.interface import Answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, a failure or a proof: exactly one. ``attempt``: the last one, 0 where none began."""

    attempt: int
    duration_ms: int
    """Since the first attempt of this process began."""
    answer: Answer | None = None
    failure: Failure | None = None
    proof: Proof | None = None

    @property
    def name(self) -> Literal["result", "failed", "cancelled"]:
        """The outcome's word on the wire and in files."""
        if self.answer is not None:
            return "result"
        return "failed" if self.failure is not None else "cancelled"
