"""`ksi sub`: follow events."""

import re
from datetime import datetime
from typing import Any, Final

import click

from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import Duration, common_options
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import text_of, write, write_json_line
from ksi_client.connecting import connect, socket_path
from ksi_client.raw import RawClient, Start
from ksi_common.clock import SystemClock, format_time
from ksi_common.frames import Item, Mark

_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d")


class Moment(Duration):
    """A time: RFC 3339, or how long ago."""

    name = "moment"
    wanted = "is no time: write how long ago, as 10m or 2h, or when, as 2026-01-31T12:00:00Z"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Give the time, RFC 3339."""
        now_us = SystemClock().time_us()
        try:
            if _MOMENT.match(str(value)):  # without an offset it is meant as the clock on the wall
                return format_time(round(datetime.fromisoformat(str(value)).timestamp() * 1_000_000))
            return format_time(now_us - int(super().convert(value, param, ctx) * 1_000_000))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is a time that no calendar has", param, ctx)


@click.command()
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@click.option("--since", type=Moment(), help="Begin so long ago (10m), or at a time (2026-01-31T12:00:00Z).")
@click.option("--from-beginning", is_flag=True, help="Begin with the oldest event that is kept.")
@click.option("--cursor", help="Begin after the event that this cursor came with.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many events.")
@common_options
@click.pass_obj
def sub(
    invocation: Invocation,
    patterns: tuple[str, ...],
    *,
    since: str | None,
    from_beginning: bool,
    cursor: str | None,
    count: int | None,
) -> None:
    """Follow events, by name or by the beginning of their names.

    \b
    ksi sub 'state:*'
    ksi sub 'completion:*' --since 10m
    ksi sub '*' --from-beginning --count 100 -o jsonl | jq -r .event

    Goes on by itself when the daemon restarts, with no event missed or shown twice. With -o jsonl each
    event is a JSON object on a line, with the cursor to go on from.
    """  # noqa: D301
    start = starting_point(since=since, from_beginning=from_beginning, cursor=cursor)
    # Without a daemon this fails at once; a daemon that goes away later is waited for.
    connect(socket_path(invocation.socket)).close()
    with RawClient(invocation.socket, connect_timeout_s=None) as client:
        shown = 0
        for entry in client.subscribe_raw(patterns, start=start, timeout_s=invocation.timeout_s):
            if isinstance(entry, Item):
                show_event(invocation, entry)
                shown += 1
                if shown == count:
                    return
            elif entry.kind == "gap":
                show_gap(invocation, entry)


def starting_point(*, since: str | None, from_beginning: bool, cursor: str | None) -> Start:
    """Give where a subscription begins; a usage error where it is said twice."""
    if sum((since is not None, from_beginning, cursor is not None)) > 1:
        raise click.UsageError("--since, --from-beginning and --cursor exclude each other")
    if since is not None:
        return {"time": since}
    if cursor is not None:
        return {"cursor": cursor}
    return "beginning" if from_beginning else "now"


def show_event(invocation: Invocation, item: Item) -> None:
    """Write one event on a line."""
    told = item.data
    if invocation.is_json:
        write_json_line(invocation, {**told, "cursor": item.cursor})
    elif invocation.format == "plain":
        write(invocation, "\t".join(map(one_line, (told["time"], told["event"], text_of(told["data"])))))
    else:
        time = click.style(one_line(told["time"][11:23]), dim=True)
        name = click.style(one_line(told["event"]), bold=True)
        write(invocation, f"{time}  {name}  {one_line(text_of(told['data']))}")


def show_gap(invocation: Invocation, mark: Mark) -> None:
    """Say that events are missing: in JSON among them, else on stderr."""
    if invocation.is_json:
        write_json_line(invocation, {"type": "gap", "cursor": mark.cursor, **mark.fields})
    else:
        click.echo(f"gap: events are missing here: {one_line(text_of(mark.fields))}", err=True)
