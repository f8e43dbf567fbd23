"""Stop the daemon: it takes no new work, finishes what runs, and ends."""

import signal
from contextlib import ExitStack
from typing import Final

from ksi_client.control.processes import Process
from ksi_client.control.standing import Standing, look
from ksi_client.control.wording import Exit, Outcome, Tell, duration, tell_nobody
from ksi_client.raw import call_raw
from ksi_common.errors import KSIError
from ksi_common.paths import Paths

DRAIN_S: Final = 30.0
"""For a daemon that cannot say how long it may take."""
MARGIN_S: Final = 5.0
"""For closing the database, after the drain."""
NOW_S: Final = 2.0
ANSWER_S: Final = 2.0
SUPERVISOR_S: Final = 2.0


def stop(paths: Paths, *, now: bool = False, tell: Tell = tell_nobody) -> Outcome:
    """Drain the daemon and wait for its end, and its supervisor's; ``now``: without the drain.

    One that does not end in its time is killed, and so is one at Ctrl-C: what it acknowledged is kept.
    """
    standing = look(paths)
    with ExitStack() as stack:
        daemon = _open(standing.pid if standing.state in {"running", "unresponsive"} else None, stack)
        supervisor = _open(standing.supervisor_pid, stack)
        if daemon is None and supervisor is None:
            return _not_running(standing)
        killed = False
        if daemon is not None:
            grace_s = _ask_to_stop(paths, standing, daemon, now=now)
            killed = not _ends_in_time(daemon, grace_s, NOW_S if now else MARGIN_S, tell)
            if killed:
                _kill(daemon, supervisor)
        if supervisor is not None:
            if not _ends(supervisor, after_s=SUPERVISOR_S if daemon else 0.0):
                return _left_behind(supervisor)
            supervisor.reap()  # it is a child of start --reload
    return _stopped(standing, killed=killed)


def _open(pid: int | None, stack: ExitStack) -> Process | None:
    try:
        return None if pid is None else stack.enter_context(Process(pid))
    except ProcessLookupError:
        return None


def _ask_to_stop(paths: Paths, standing: Standing, daemon: Process, *, now: bool) -> float:
    """Ask by event, or by signal where it does not listen; give the seconds that running work has."""
    if standing.state == "running":
        asked = {"grace_s": 0} if now else {}
        try:
            reply = call_raw("system:shutdown", asked, socket=paths.socket, timeout_s=ANSWER_S)
            return float(reply["grace_s"])
        except KSIError:
            pass  # it may have begun to stop just now; the signal says the same
    daemon.send(signal.SIGTERM)
    return 0.0 if now else DRAIN_S


def _ends_in_time(daemon: Process, grace_s: float, margin_s: float, tell: Tell) -> bool:
    try:
        tell(f"Draining: no new work, {grace_s:.0f} s for what runs (Ctrl-C ends it now) ... ")
        ended = daemon.wait(grace_s + margin_s)
    except KeyboardInterrupt:
        ended = False
    tell("done\n" if ended else "killed\n")
    return ended


def _kill(daemon: Process, supervisor: Process | None) -> None:
    if supervisor is not None:
        supervisor.send(signal.SIGTERM)  # first, or it would take the kill for a crash
    daemon.send(signal.SIGKILL)
    daemon.wait(MARGIN_S)


def _ends(supervisor: Process, *, after_s: float) -> bool:
    """Let the supervisor end by itself; ask it where it does not, for it may be about to start a daemon."""
    if supervisor.wait(after_s):
        return True
    supervisor.send(signal.SIGTERM)
    return supervisor.wait(DRAIN_S + MARGIN_S)


def _not_running(standing: Standing) -> Outcome:
    text = "KSI is not running."
    if standing.state == "dead":
        text += " It died without cleaning up; the next start will."
    return Outcome(Exit.OK, text, {"status": "not_running"})


def _left_behind(supervisor: Process) -> Outcome:
    reason = f"the supervisor (pid {supervisor.pid}) does not end"
    text = f"Not stopped: {reason}.\n  End it: kill -KILL {supervisor.pid}"
    return Outcome(Exit.FAILED, text, {"status": "not_stopped", "reason": reason})


def _stopped(standing: Standing, *, killed: bool) -> Outcome:
    ran = f", ran for {duration(standing.health['uptime_s'])}" if standing.health else ""
    text = f"Stopped KSI (pid {standing.pid or standing.supervisor_pid}{ran})."
    if killed:
        text += " It was killed; what it had acknowledged is kept."
    return Outcome(Exit.OK, text, {"status": "stopped", "pid": standing.pid, "killed": killed})
