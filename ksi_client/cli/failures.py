"""Say what went wrong: four lines for people, one object for programs, a number for the shell."""

import re
from collections.abc import Mapping
from typing import Final

import click
import orjson

from ksi_client.cli.invocation import Invocation
from ksi_client.cli.safety import json_visible, one_line
from ksi_client.cli.writing import text_of, write_json
from ksi_common.errors import KSIError

FAILED: Final = 1
USAGE: Final = 2
NOT_RUNNING: Final = 3
NOT_PERMITTED: Final = 4
TIMED_OUT: Final = 5
OVERLOADED: Final = 6
MISMATCH: Final = 7
INTERRUPTED: Final = 130

EXIT_CODES: Final = """\
Exit codes: 0 done, 1 it failed, 2 wrong usage, 3 KSI is not running, 4 not permitted, 5 timed out,
6 overloaded: retry later, 7 versions do not match, 130 interrupted."""

_BY_REASON: Final[Mapping[str, int]] = {
    "daemon_not_running": NOT_RUNNING,
    "protocol_mismatch": MISMATCH,
    "newer_schema": MISMATCH,
}
_BY_CODE: Final[Mapping[str, int]] = {
    "PERMISSION_DENIED": NOT_PERMITTED,
    "DEADLINE_EXCEEDED": TIMED_OUT,
    "RESOURCE_EXHAUSTED": OVERLOADED,
}
_REPEATED: Final = ("nearest", "problems", "socket")
"""Details that the hint and the message say in words."""
_SAID: Final = {"daemon_not_running": "KSI is not running"}
"""Reasons that the message may say in words."""
_TYPED: Final = (
    (re.compile(r"system:help {event: (\S+)} shows its fields"), r"ksi events show \1"),
    (re.compile("system:discover lists"), "ksi events ls lists"),
)
"""Events that the daemon's hints name, and the commands that people type for them."""
_HINTS: Final[Mapping[str, str]] = {
    "DEADLINE_EXCEEDED": "give it longer: --timeout 60s",
    "UNAVAILABLE": "try again",
    "RESOURCE_EXHAUSTED": "try again later",
    "INTERNAL": "this is a bug: the daemon's log has its traceback",
}


def exit_code(error: KSIError) -> int:
    """Give the number that the shell gets."""
    by_reason = _BY_REASON.get(str(error.details.get("reason")))
    return by_reason or (FAILED if _will_not_pass(error) else _BY_CODE.get(error.code, FAILED))


def _will_not_pass(error: KSIError) -> bool:
    """Tell whether a limit is met however often it is tried, as that of a reply's size."""
    return error.code == "RESOURCE_EXHAUSTED" and not error.retryable


def report(invocation: Invocation, error: KSIError) -> int:
    """Say what went wrong, why, what to do and which code it has; give the exit code."""
    if invocation.is_json:
        write_json(invocation, {"error": error.to_wire()})
    else:
        for line in four_lines(error):
            click.echo(line, err=True)
    return exit_code(error)


def four_lines(error: KSIError) -> list[str]:
    """Give the lines: what, why, what to do, and the code."""
    usual = None if _will_not_pass(error) else _HINTS.get(error.code)
    hint = _typed(error.hint) if error.hint else usual
    notes = getattr(error, "__notes__", [])
    lines = [
        error.message,
        _why(error),
        f"  try: {hint}" if hint else "",
        "  ".join(["", error.code, *notes]),
    ]
    return [one_line(line) for line in lines if line]


def _typed(hint: str) -> str:
    """Give what the daemon hints at as people type it."""
    for event, command in _TYPED:
        hint = event.sub(command, hint)
    return hint


def report_file(error: OSError, *, program: str = "ksi") -> int:
    """Say what the system says of a file, or of stdout, which may be the one that is full; give the code."""
    file = f"{error.filename}: " if error.filename else ""
    click.echo(one_line(f"{program}: {file}{error.strerror or error}"), err=True)
    return FAILED


def report_usage(invocation: Invocation, error: click.ClickException) -> int:
    """Say how the command is used."""
    if "--json" in invocation.argv or invocation.is_json:
        wire = {"code": "INVALID_ARGUMENT", "message": error.format_message(), "details": {"reason": "usage"}}
        click.echo(json_visible(orjson.dumps({"error": wire}).decode()))
    else:
        error.show()
    return error.exit_code


def _why(error: KSIError) -> str:
    details = {name: value for name, value in error.details.items() if name not in _REPEATED}
    reason = details.pop("reason", "")
    if error.message.startswith(_SAID.get(reason, "\0")):
        reason = ""
    rest = ", ".join(
        f"{name} {text_of(value)}" for name, value in details.items() if value not in (None, [], "")
    )
    why = str(reason).replace("_", " ")
    why = f"{why} ({rest})" if why and rest else why or rest
    return f"  why: {why}" if why else ""
