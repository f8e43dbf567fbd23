"""Find the daemon, and start it where there is none."""

from ksi_client.chat.failures import NotStarted
from ksi_client.chat.screen import Screen
from ksi_client.connecting import connect
from ksi_client.control.starting import start
from ksi_client.control.wording import Exit
from ksi_common.errors import Unavailable
from ksi_common.paths import Paths


def reach(paths: Paths, screen: Screen, *, may_start: bool) -> None:
    """Return where a daemon listens; ``may_start``: or could be started, which is said.

    Raises Unavailable (``daemon_not_running``), NotStarted, or PermissionDenied where it is another user's.
    """
    try:
        connect(paths.socket).close()
    except Unavailable as error:
        reason = error.details.get("reason")
        if reason == "daemon_not_running" and may_start:
            _start(paths, screen)
        elif reason != "busy":
            raise


def _start(paths: Paths, screen: Screen) -> None:
    outcome = start(paths)
    if outcome.code != Exit.OK:
        raise NotStarted(outcome)
    if outcome.data["status"] == "started":
        screen.note(f"KSI was not running; started it (pid {outcome.data['pid']}).")
