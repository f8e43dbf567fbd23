"""What is said, and which exit code is given, when there is no answer."""

from collections.abc import Mapping
from typing import Final

from ksi_client.chat.answer import Answer
from ksi_client.cli.failures import FAILED, OVERLOADED, TIMED_OUT, exit_code, four_lines
from ksi_client.cli.safety import one_line, visible
from ksi_client.control.wording import Outcome
from ksi_client.programs import control
from ksi_common.errors import KSIError, Unavailable

_BY_REASON: Final[Mapping[str, int]] = {
    "timed_out": TIMED_OUT,
    "stalled": TIMED_OUT,
    "rate_limited": OVERLOADED,
}


class NotStarted(Unavailable):
    """KSI could not be started; ``outcome`` says why, as ``daemon_control.py start`` does."""

    def __init__(self, outcome: Outcome) -> None:
        reason = str(outcome.data.get("reason") or outcome.text)
        super().__init__(f"KSI could not be started: {reason}", reason="not_started", retryable=False)
        self.outcome = outcome


def lines_of(error: KSIError) -> list[str]:
    """Say what went wrong, why, and what to do."""
    if isinstance(error, NotStarted):
        return [
            f"chat: {line}" if not n else line
            for n, line in enumerate(visible(error.outcome.text).split("\n"))
        ]
    if error.details.get("reason") == "daemon_not_running":
        return ["chat: KSI is not running.", f"  Start it:  {control('start')}"]
    first, *rest = four_lines(error)
    return [f"chat: {first}", *rest]


def code_of(error: KSIError) -> int:
    """Give the exit code of an error."""
    return int(error.outcome.code) if isinstance(error, NotStarted) else exit_code(error)


def lines_of_no_answer(answer: Answer) -> list[str]:
    """Say why there is no answer."""
    wrong = answer.error() or {}
    lines = [
        f"chat: no answer: {wrong['message']}",
        f"  why: {str(wrong['details']['reason']).replace('_', ' ')}",
    ]
    if wrong["retryable"]:
        longer = ", or give it longer: --timeout 5m" if wrong["details"]["reason"] == "timed_out" else ""
        lines.append(f"  try: ask again{longer}")
    return [one_line(line) for line in lines]


def code_of_answer(answer: Answer) -> int:
    """Give the exit code of an answer, or of none."""
    if answer.end == "result":
        return 0
    reason = (answer.failure or {}).get("reason", "")
    return _BY_REASON.get(reason, FAILED)
