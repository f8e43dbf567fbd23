"""`ksi plugin ls` and `ksi plugin show`: what is loaded, and what became of the rest."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import write, write_aligned, write_json, write_json_line, write_rows
from ksi_client.programs import control

COLORS: Final = {"loaded": "green", "refused": "red", "quarantined": "red", "disabled": "yellow"}
_LISTS: Final = (
    ("handlers", "answers"),
    ("told", "tells"),
    ("subscribers", "hears"),
    ("services", "offers"),
    ("hooks", "hooks"),
    ("middleware", "layers"),
    ("requires", "needs"),
    ("wants", "wants"),
)


@click.command()
@common_options
@click.pass_obj
def ls(invocation: Invocation) -> None:
    """List the plugins of the daemon, and why some were refused.

    \b
    ksi plugin ls
    ksi plugin ls -o jsonl | jq 'select(.status != "loaded")'
    """  # noqa: D301
    with invocation.client() as client:
        found = client.call_raw("plugin:list", {}, safe=True)
    if invocation.format == "json":
        write_json(invocation, found)
    elif invocation.format == "jsonl":
        for plugin in found["plugins"]:
            write_json_line(invocation, plugin)
    else:
        write_rows(invocation, ("PLUGIN", "VERSION", "STATUS", "EVENTS", "FROM"), map(_row, found["plugins"]))


@click.command()
@click.argument("name")
@common_options
@click.pass_obj
def show(invocation: Invocation, name: str) -> None:
    """Tell what one plugin contributes.

    \b
    ksi plugin show state
    """  # noqa: D301
    with invocation.client() as client:
        plugin = client.call_raw("plugin:inspect", {"plugin_name": name}, safe=True)
    if invocation.is_json:
        write_json(invocation, plugin)
        return
    status = click.style(one_line(plugin["status"]), fg=COLORS.get(plugin["status"]))
    title = click.style(one_line(f"{plugin['name']} {plugin['version']}"), bold=True)
    write(invocation, f"{title}  {status}")
    write_aligned(invocation, list(_facts(plugin)), indent="  ")


def _row(plugin: Mapping[str, Any]) -> tuple[str, ...]:
    said = plugin["error"] or plugin["origin"]
    return plugin["name"], plugin["version"], plugin["status"], str(plugin["events"]), said


def _facts(plugin: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "from", plugin["origin"]
    if plugin["error"]:
        yield "why", plugin["error"]
    for name, label in _LISTS:
        if plugin.get(name):
            yield label, "\n".join(plugin[name])
    if plugin["failures"]:
        yield "bugs", f"{plugin['failures']} since the start: {control('logs --level error')}"
