"""How the daemon of a home stands, found out without disturbing it."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from ksi_client.control.processes import is_alive
from ksi_client.raw import call_raw
from ksi_common.errors import DeadlineExceeded, KSIError, Unavailable
from ksi_common.paths import Paths
from ksi_common.records import record

ANSWER_S: Final = 2.0

State = Literal["running", "unresponsive", "restarting", "dead", "stopped"]


@record
class Supervised:
    """What the supervisor says of itself and of its daemon."""

    pid: int
    alive: bool
    restarts: int
    last_exit: str | None
    suspects: list[str]
    gave_up: str | None

    @property
    def crash(self) -> str:
        """Say that its daemon has crashed; how is known once the process has ended."""
        how = f" ({self.last_exit})" if self.last_exit else ""
        return f"KSI has crashed{how}; its supervisor (pid {self.pid}) will start it again."


@record
class Standing:
    """How the daemon stands.

    ``unresponsive``: it has the home but does not answer: it starts, drains, or hangs, or a plugin refuses in
    its name. ``restarting``: it has crashed, and its supervisor will start it again. ``dead``: it ended
    without cleaning up. ``pid``: that of the daemon, or of the one that is dead.
    """

    state: State
    pid: int | None = None
    health: Mapping[str, Any] | None = None
    supervisor: Supervised | None = None
    refusal: str | None = None
    """What it says in place of its health: a layer of a plugin may stand before that, too."""

    @property
    def supervisor_pid(self) -> int | None:
        """The supervisor, where one runs."""
        return self.supervisor.pid if self.supervisor and self.supervisor.alive else None


def look(paths: Paths, *, timeout_s: float = ANSWER_S) -> Standing:
    """Find out how the daemon stands.

    Raises PermissionDenied where the socket is another user's, Unavailable where there can be none.
    """
    supervisor = read_supervisor(paths)
    try:
        health = call_raw("system:health", socket=paths.socket, timeout_s=timeout_s)
    except Unavailable as error:
        match error.details.get("reason"):
            case "daemon_not_running":
                return _without_answer(paths, supervisor)
            case "no_socket":
                raise
        return Standing("unresponsive", _holder(paths), supervisor=supervisor)
    except DeadlineExceeded:
        return Standing("unresponsive", _holder(paths), supervisor=supervisor)
    except KSIError as error:
        holder = None if error.details.get("reason") == "foreign_server" else _holder(paths)
        if holder is None:
            raise
        return Standing("unresponsive", holder, supervisor=supervisor, refusal=error.message)
    return Standing("running", health["pid"], health, supervisor)


def read_supervisor(paths: Paths) -> Supervised | None:
    """Read what the supervisor left in ``run/supervisor.json``."""
    try:
        record = json.loads((paths.run / "supervisor.json").read_text(encoding="utf-8"))
        return Supervised(
            pid=record["pid"],
            alive=_supervises(record["pid"], paths),
            restarts=record["restarts"],
            last_exit=record["last_exit"],
            suspects=record["suspects"],
            gave_up=record["gave_up"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _without_answer(paths: Paths, supervisor: Supervised | None) -> Standing:
    holder = _holder(paths)
    if holder is not None:
        return Standing("unresponsive", holder, supervisor=supervisor)
    if supervisor is not None and supervisor.alive:
        return Standing("restarting", supervisor=supervisor)
    died = _read_pid(paths.pid_file)
    given_up = supervisor is not None and supervisor.gave_up is not None
    # What a supervisor that was killed has left says nothing of a daemon that has taken its own things away.
    if died is not None or paths.socket.is_socket() or given_up:
        return Standing("dead", died, supervisor=supervisor)
    return Standing("stopped")


def _holder(paths: Paths) -> int | None:
    """Give the process that holds the home. The lock says so; the number alone may be anybody's by now."""
    pid = _read_pid(paths.lock)
    return pid if pid is not None and is_alive(pid) and _is_locked(paths.lock) else None


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            # Tried only where the last holder seems alive: a daemon that starts just now could be refused
            # because of us.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _supervises(pid: int, paths: Paths) -> bool:
    """Tell whether that process is the supervisor of this home, and not one that took over its number."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"ksi_daemon.process_supervisor" in words and os.fsencode(paths.home) in words


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
