"""Start the daemon, and say so once it answers."""

import fcntl
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ksi_client.control.launching import CannotStart, become_daemon, check, launch
from ksi_client.control.logs import last_lines
from ksi_client.control.standing import Standing, look
from ksi_client.control.stopping import stop
from ksi_client.control.wording import Exit, Outcome, Tell, duration, models, tell_nobody
from ksi_client.programs import control, of_checkout, of_home
from ksi_client.raw import RawClient
from ksi_common.errors import FailedPrecondition, KSIError
from ksi_common.paths import Paths

START_S: Final = 15.0
LOG_LINES: Final = 15
MARK_BYTES: Final = 128
"""Of a name in the breadcrumb: ``breadcrumb.SIZE``."""
RETRY_S: Final = 0.05

Plugins = Sequence[Mapping[str, Any]]


def start(paths: Paths, *, timeout_s: float = START_S) -> Outcome:
    """Start the daemon unless it runs; return once it answers. Of many that start at once, one does."""
    deadline = time.monotonic() + timeout_s
    _make_folders(paths)
    while True:
        with _turn(paths) as mine:
            standing = look(paths)
            if standing.state == "running":
                return _already_running(standing)
            if mine and standing.state in {"stopped", "dead"}:
                return _start(paths, standing, timeout_s)
        if time.monotonic() >= deadline or standing.refusal is not None:
            return _taken(paths, standing)
        time.sleep(RETRY_S)  # another starts, drains or restarts it: nothing here could be waited for


def start_here(paths: Paths, *, tell: Tell = tell_nobody) -> Outcome:
    """Become the daemon, in this terminal; return only where one runs already."""
    _make_folders(paths)
    standing = look(paths)
    if standing.state != "running":
        if standing.state == "dead":
            tell(f"{_obituary(standing)}\n")
        become_daemon(paths)
    return _already_running(standing)


def restart(
    paths: Paths, *, now: bool = False, timeout_s: float = START_S, tell: Tell = tell_nobody
) -> Outcome:
    """Stop and start. Where the settings or the built-in plugins would not load, nothing is stopped."""
    _make_folders(paths)
    could_start, problems = check(paths)
    if not could_start:
        return _not_restarted(look(paths), problems)
    if problems:
        tell(f"{problems}\n")
    stopped = stop(paths, now=now, tell=tell)
    if stopped.code != Exit.OK:
        return stopped
    tell(f"{stopped.text}\n")
    return start(paths, timeout_s=timeout_s)


def _make_folders(paths: Paths) -> None:
    for folder in (paths.home, paths.run, paths.log.parent):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            why = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
            raise FailedPrecondition(
                f"cannot use {folder}: {why}", hint="set KSI_HOME, or give --home"
            ) from error


@contextmanager
def _turn(paths: Paths) -> Iterator[bool]:
    """Be the one that starts; False where another is at it."""
    with (paths.run / "starting.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _start(paths: Paths, before: Standing, timeout_s: float) -> Outcome:
    begun = time.monotonic()
    try:
        launch(paths, timeout_s=timeout_s)
    except CannotStart as error:
        return _failed(paths, error, timeout_s)
    try:
        with RawClient(paths.socket, connect_timeout_s=timeout_s) as client:
            health = client.call_raw("system:health", timeout_s=timeout_s)
            plugins = client.call_raw("plugin:list", timeout_s=timeout_s)["plugins"]
    except KSIError as error:
        standing = look(paths)
        if standing.refusal is None:
            raise
        return _started_but(paths, standing, error)
    return _started(paths, before, health, plugins, time.monotonic() - begun)


# What is said.


def _already_running(standing: Standing) -> Outcome:
    assert standing.health is not None
    uptime_s = standing.health["uptime_s"]
    return Outcome(
        Exit.OK,
        f"KSI is already running (pid {standing.pid}, up {duration(uptime_s)}).",
        {"status": "already_running", "pid": standing.pid, "uptime_s": uptime_s},
    )


def _started(
    paths: Paths, before: Standing, health: Mapping[str, Any], plugins: Plugins, took_s: float
) -> Outcome:
    recovered = _recovered(before, health) if before.state == "dead" else []
    lines = [
        f"Starting KSI {health['version']}",
        *(f"  {line}" for line in recovered),
        f"  socket    {paths.socket}   (only you can open it)",
        f"  data      {paths.home}   log  {paths.log}",
        f"  plugins   {_plugins(plugins)}",
        f"  models    {models(health)}",
        f"Ready in {duration(took_s)}, pid {health['pid']}.   Try: {_what_to_try(paths.home)}",
    ]
    data = {
        "status": "started",
        "pid": health["pid"],
        "took_s": round(took_s, 3),
        "version": health["version"],
        "socket": str(paths.socket),
        "home": str(paths.home),
        "log": str(paths.log),
        "recovered": recovered,
    }
    return Outcome(Exit.OK, "\n".join(lines), data)


def _started_but(paths: Paths, standing: Standing, error: KSIError) -> Outcome:
    reason = f"it does not say how it fares: {error.message}"
    return Outcome(
        Exit.FAILED,
        f"Started KSI (pid {standing.pid}), but {reason}.\n  End it: {control('stop', paths.home)}",
        {"status": "started", "pid": standing.pid, "reason": reason},
    )


def _what_to_try(home: Path) -> str:
    chat, ksi = of_checkout("chat.py"), of_checkout("ksi")
    if chat is None or ksi is None:
        first, second = of_home("ksi events ls", home), "ksi plugin new NAME"
    else:
        first = of_home(f"python3 {chat}", home)
        second = of_home(f"{ksi if '/' in ksi else f'./{ksi}'} events ls", home)
    return f"{first}   |   {second}   |   {control('stop', home)}"


def _recovered(before: Standing, health: Mapping[str, Any]) -> list[str]:
    events = health["checks"]["database"]["detail"].get("head", 0)
    return [
        _obituary(before),
        f"Recovered: its pid file and socket were replaced; the log has {events:,} events.",
    ]


def _obituary(before: Standing) -> str:
    if before.supervisor is not None and before.supervisor.gave_up:
        return f"The KSI before was given up: {before.supervisor.gave_up}, by {before.supervisor.last_exit}."
    who = f"A KSI that ran as pid {before.pid}" if before.pid else "A KSI"
    return f"{who} died without cleaning up (kill -9 or power loss)."


def _plugins(plugins: Plugins) -> str:
    loaded = [plugin["name"] for plugin in plugins if plugin["status"] == "loaded"]
    others = [
        f"{plugin['name']} is {plugin['status']}: {plugin['error']}"
        for plugin in plugins
        if plugin["status"] != "loaded"
    ]
    return "\n            ".join([f"{len(loaded)} loaded ({', '.join(loaded)})", *others])


def _not_restarted(standing: Standing, problems: str) -> Outcome:
    reason = _reason(problems)
    text = f"Not restarted: {reason}"
    if standing.state == "running":
        text += f"\nThe KSI that runs (pid {standing.pid}) was left as it is."
    return Outcome(Exit.FAILED, text, {"status": "not_restarted", "reason": reason, "pid": standing.pid})


def _taken(paths: Paths, standing: Standing) -> Outcome:
    if standing.state == "restarting" and standing.supervisor is not None:
        reason = standing.supervisor.crash
    else:
        who = f"Another KSI (pid {standing.pid})" if standing.pid else "Another KSI"
        does = "does not answer" if standing.refusal is None else f"answers only: {standing.refusal}"
        reason = f"{who} uses {paths.home} and {does}."
    return Outcome(
        Exit.NOT_PERMITTED,
        f"{reason}\n  End it: {control('stop --now', paths.home)}",
        {"status": "not_started", "reason": reason, "pid": standing.pid},
    )


def _failed(paths: Paths, error: CannotStart, timeout_s: float) -> Outcome:
    if error.code is None:
        reason = f"it was not ready within {timeout_s:g} s, and was stopped{_where(paths)}"
    else:
        reason = _why(paths, error.code, error.printed)
    logged = last_lines(paths.log, LOG_LINES)
    text = f"Could not start: {reason}"
    if logged:
        text += f"\nLast lines of {paths.log}:\n" + "\n".join(f"  {line}" for line in logged)
    return Outcome(
        error.code or Exit.FAILED, text, {"status": "not_started", "reason": reason, "log": logged}
    )


def _where(paths: Paths) -> str:
    """Name the plugin whose code the daemon was running when it was ended, as its breadcrumb has it."""
    try:
        mark = (paths.run / "breadcrumb").read_bytes()[:MARK_BYTES]
    except OSError:
        return ""
    plugin = mark.partition(b"\0")[0].decode(errors="replace")
    hint = control("start --safe-mode", paths.home)
    return f" while it ran plugin {plugin}\n  Start without plugins: {hint}" if plugin else ""


def _why(paths: Paths, code: int, printed: str) -> str:
    """Say why a daemon ended; a full disk has no room for its last words, or for the end of them."""
    if code == Exit.OK and not printed:
        return "it was stopped before it was ready"
    if not printed.endswith("\n") and not shutil.disk_usage(paths.home).free:
        return f"the disk that {paths.home} is on is full"
    return _reason(printed) or f"it ended with exit code {code} and said nothing"


def _reason(printed: str) -> str:
    """Find what a daemon said last: its own sentence, or the end of a traceback."""
    lines = printed.strip().splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("KSI "):
            _, _, sentence = lines[index].partition(": ")
            return "\n".join([sentence, *lines[index + 1 :]])
    return "\n".join(lines[-LOG_LINES:])
