"""How the daemon fares, on one screen or in one line."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ksi_client.control.standing import ANSWER_S, Standing, Supervised, look
from ksi_client.control.wording import Exit, Outcome, duration, models, size
from ksi_client.programs import control
from ksi_client.raw import call_raw
from ksi_common.errors import KSIError
from ksi_common.paths import Paths

CODES: Final = {
    "running": Exit.OK,
    "restarting": Exit.FAILED,
    "dead": Exit.FAILED,
    "stopped": Exit.NOT_RUNNING,
    "unresponsive": Exit.NOT_PERMITTED,
}


def status(paths: Paths) -> Outcome:
    """Tell everything that fits a screen. Codes: 0 running, 1 dead, 3 stopped, 4 not known."""
    standing = look(paths)
    data = _data(paths, standing)
    if standing.state == "running":
        data["plugins"] = _plugins(paths)
        data["work"] = _work(paths)
        data["models"] = models(standing.health) if standing.health else ""
        text = _screen(data)
    else:
        text = "\n".join((f"○ {_without(paths, standing)}", *_where(data)))
    return Outcome(CODES[standing.state], text, data)


def health(paths: Paths) -> Outcome:
    """Tell in one line. Codes: 0 serving, 1 unhealthy or not answering, 3 not running."""
    standing = look(paths)
    if standing.health is None:
        absent = standing.state in {"stopped", "dead"}
        code = Exit.NOT_RUNNING if absent else Exit.FAILED
        return Outcome(
            code, _without(paths, standing), {"status": "not_running" if absent else "unresponsive"}
        )
    word = "ok" if standing.health["status"] == "healthy" else standing.health["status"]
    parts = ["live", *_alarms(standing.health), *_figures(standing.health)]
    code = Exit.FAILED if standing.health["status"] == "unhealthy" else Exit.OK
    return Outcome(code, f"{word}  {', '.join(parts)}", standing.health)


def _data(paths: Paths, standing: Standing) -> dict[str, Any]:
    answer = standing.health or {}
    figures = answer.get("checks", {})
    return {
        "state": standing.state,
        "pid": standing.pid,
        "uptime_s": answer.get("uptime_s"),
        "version": answer.get("version"),
        "home": str(paths.home),
        "socket": str(paths.socket),
        "socket_moved": "KSI_SOCKET" not in os.environ and paths.socket.parent != paths.run,
        "log": str(paths.log),
        "events": figures.get("database", {}).get("detail", {}).get("head"),
        "clients": answer.get("active_connections"),
        "subscriptions": figures.get("message_queue", {}).get("detail", {}).get("subscriptions"),
        "alarms": _alarms(answer) if answer else [],
        "supervisor": _supervisor(standing.supervisor),
    }


def _work(paths: Paths) -> dict[str, int] | None:
    try:
        found = call_raw("completion:status", socket=paths.socket, timeout_s=ANSWER_S)
    except KSIError:  # that plugin may not be loaded
        return None
    return {"running": found["active_count"], "waiting": found["queued_count"]}


def _plugins(paths: Paths) -> list[dict[str, Any]]:
    try:
        listed = call_raw("plugin:list", socket=paths.socket, timeout_s=ANSWER_S)["plugins"]
    except KSIError:
        return []
    return [{key: plugin[key] for key in ("name", "status", "error")} for plugin in listed]


def _supervisor(supervisor: Supervised | None) -> dict[str, Any] | None:
    if supervisor is None:
        return None
    return {
        "pid": supervisor.pid if supervisor.alive else None,
        "restarts": supervisor.restarts,
        "last_exit": supervisor.last_exit,
        "gave_up": supervisor.gave_up,
    }


def _alarms(answer: Mapping[str, Any]) -> list[str]:
    checks: Mapping[str, Mapping[str, Any]] = answer["checks"]
    return [
        f"{name} {check['status']} ({_detail(check['detail'])})"
        for name, check in checks.items()
        if check["status"] != "healthy"
    ]


def _detail(detail: Mapping[str, Any]) -> str:
    figures = []
    for name, value in detail.items():
        if name.endswith("_bytes"):
            figures.append(f"{name.removesuffix('_bytes')} {size(value)}")
        elif isinstance(value, list):
            figures.append(f"{name}: {' '.join(map(str, value)) or 'none'}")
        else:
            figures.append(f"{name} {value}")
    return ", ".join(figures)


def _figures(answer: Mapping[str, Any]) -> list[str]:
    database, disk = (answer["checks"][name]["detail"] for name in ("database", "disk_space"))
    figures = []
    if "read_ms" in database:
        figures.append(f"db {database['read_ms']:.1f} ms")
    if "free_bytes" in disk:
        figures.append(f"disk {size(disk['free_bytes'])} free")
    return figures


def _without(paths: Paths, standing: Standing) -> str:
    keeper = standing.supervisor
    if standing.state == "stopped":
        return f"KSI is not running. Start it: {control('start', paths.home)}"
    if standing.state == "unresponsive":
        who = f" (pid {standing.pid})" if standing.pid else ""
        if standing.refusal is not None:
            return f"KSI{who} runs, but does not say how it fares: {standing.refusal}."
        return f"KSI{who} does not answer: it starts, stops or hangs."
    if standing.state == "restarting" and keeper is not None:
        return keeper.crash
    if keeper is not None and keeper.gave_up:
        return f"KSI is not running: {keeper.gave_up}, the last time by {keeper.last_exit}."
    who = f" as pid {standing.pid}" if standing.pid else ""
    return f"KSI is not running: it ran{who} and died without cleaning up. The next start will."


def _screen(data: Mapping[str, Any]) -> str:
    lines = [
        f"● running   pid {data['pid']}   up {duration(data['uptime_s'])}   v{data['version']}",
        *_where(data),
        f"  events    {_stored(data['events'])}",
        *_work_lines(data["work"]),
        f"  models    {data['models']}",
        f"  clients   {data['clients']} connected, {data['subscriptions']} subscriptions",
        f"  plugins   {_plugin_line(data['plugins'])}",
        *_restart_lines(data["supervisor"]),
        f"  alarms    {'; '.join(data['alarms']) or 'none'}",
    ]
    return "\n".join(lines)


def _stored(events: int | None) -> str:
    return "not known" if events is None else f"{events:,} stored"


def _work_lines(work: Mapping[str, int] | None) -> list[str]:
    return [f"  work      {work['running']} running, {work['waiting']} waiting"] if work else []


def _where(data: Mapping[str, Any]) -> list[str]:
    moved = "   (moved: its path under the data folder would be too long)" if data["socket_moved"] else ""
    return [f"  socket    {data['socket']}{moved}", f"  data      {data['home']}   log  {data['log']}"]


def _plugin_line(plugins: Sequence[Mapping[str, Any]]) -> str:
    bad = [f"{p['name']} {p['status']}: {p['error']}" for p in plugins if p["status"] != "loaded"]
    return "; ".join([f"{len(plugins) - len(bad)} ok", *bad])


def _restart_lines(supervisor: Mapping[str, Any] | None) -> list[str]:
    if supervisor is None or not supervisor["restarts"]:
        return []
    return [f"  restarts  {supervisor['restarts']} after a crash, the last by {supervisor['last_exit']}"]
