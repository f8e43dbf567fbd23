"""`ksi status`: tell whether it is well."""

from collections.abc import Mapping
from typing import Any, Final

import click

from ksi_client.cli.failures import FAILED
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import text_of, write, write_fields
from ksi_client.control.wording import duration

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
    up = duration(health["uptime_s"])
    write(
        invocation,
        f"{dot} {health['status']}   pid {health.get('pid', '?')}   up {up}   v{health['version']}"
        f"   {health['active_connections']} connected",
    )
    for name, check in health["checks"].items():
        condition = click.style(f"{check['status']:<9}", fg=_COLORS.get(check["status"]))
        figures = [f"{what} {text_of(value)}" for what, value in check.get("detail", {}).items()]
        write(invocation, f"  {name:<14} {condition}  {one_line('  '.join(figures))}".rstrip())
