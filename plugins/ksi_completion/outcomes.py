"""What an attempt comes to: one of the three ways in which a completion ends, or another try."""

from typing import Literal

from ksi_common.events.completion import Failure, Proof, Usage
from ksi_common.records import record
from ksi_completion.providers.interface import Answer
from ksi_completion.rows import Row
from ksi_daemon.plugin import Lease


@record
class Outcome:
    """An answer, a failure or a proof: exactly one. ``attempt``: the last one, 0 where none began."""

    attempt: int
    duration_ms: int
    """That its attempts have taken."""
    answer: Answer | None = None
    failure: Failure | None = None
    proof: Proof | None = None
    failures: int = 0
    """Attempts that a provider failed."""
    usage: Usage | None = None
    """Of an attempt that gave no answer, and cost something all the same."""
    lease: Lease | None = None
    """Of the session, held by the attempt."""
    provider_changed: bool = False
    """Another provider or model gave the session's answer before."""

    @property
    def name(self) -> Literal["result", "failed", "cancelled"]:
        """The outcome's word on the wire and in files."""
        if self.answer is not None:
            return "result"
        return "failed" if self.failure is not None else "cancelled"


@record(kw_only=True)
class Again:
    """Another try, ``delay_s`` from now."""

    row: Row
    """As it is on disk now."""
    delay_s: float
    unfit: str | None = None
    """The answer that did not fit, where it is to be mended."""
