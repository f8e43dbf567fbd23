"""Have the daemon read its settings again."""

from collections.abc import Sequence
from typing import Any

from ksi_client.control.standing import look
from ksi_client.control.wording import Exit, Outcome
from ksi_client.programs import control
from ksi_client.raw import call_raw
from ksi_common.paths import Paths


def reload_settings(paths: Paths) -> Outcome:
    """Put changed settings in force; say which need a restart. Raises KSIError where a file is wrong."""
    if look(paths).state != "running":
        return Outcome(
            Exit.NOT_RUNNING,
            "KSI is not running; its next start reads the settings.",
            {"status": "not_running"},
        )
    reply = call_raw("config:reload", socket=paths.socket)
    return Outcome(Exit.OK, "\n".join(_lines(reply, control("restart", paths.home))), reply)


def _lines(reply: dict[str, Any], restart: str) -> Sequence[str]:
    lines = [f"In force now: {', '.join(reply['changed'])}."] if reply["changed"] else []
    if reply["needs_restart"]:
        lines.append(f"At the next start: {', '.join(reply['needs_restart'])}. Start anew: {restart}")
    return lines or ["No setting has changed."]
