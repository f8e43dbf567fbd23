"""`ksi status`: tell whether it is well."""

from collections.abc import Mapping
from typing import Any, Final

import click

from ksi_client.cli.failures import FAILED
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import text_of, write, write_fields

TIMEOUT_S: Final = 5.0
_COLORS: Final = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}


@click.command()
@common_options
@click.pass_obj
def status(invocation: Invocation) -> int:
    """Tell whether KSI runs and how it fares.

    \b
    ksi status
    ksi status --json | jq .checks.database

    Exit codes: 0 it runs, 1 it is unhealthy, 3 it does not run.
    """  # noqa: D301
    with invocation.client(timeout_s=TIMEOUT_S) as client:
        health = client.call_raw("system:health", safe=True)
    if invocation.format == "table":
        _draw(invocation, health)
    else:
        write_fields(invocation, health)
    return FAILED if health["status"] == "unhealthy" else 0


def _draw(invocation: Invocation, health: Mapping[str, Any]) -> None:
    dot = click.style("●", fg=_COLORS.get(health["status"]))
    up = elapsed(health["uptime_s"])
    write(
        invocation,
        f"{dot} {health['status']}   pid {health.get('pid', '?')}   up {up}   v{health['version']}"
        f"   {health['active_connections']} connected",
    )
    for name, check in health["checks"].items():
        condition = click.style(f"{check['status']:<9}", fg=_COLORS.get(check["status"]))
        figures = [f"{what} {text_of(value)}" for what, value in check.get("detail", {}).items()]
        write(invocation, f"  {name:<14} {condition}  {one_line('  '.join(figures))}".rstrip())


def elapsed(seconds: float) -> str:
    """Give a time in its two largest units: 12 s, 3 m 20 s, 2 h 14 m, 5 d 1 h."""
    total = int(seconds)
    parts = [(total // 86400, "d"), (total // 3600 % 24, "h"), (total // 60 % 60, "m"), (total % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{count} {unit}" for count, unit in parts[:2])
