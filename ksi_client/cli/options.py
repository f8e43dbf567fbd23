"""Options that every command has."""

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from ksi_client.cli.invocation import FORMATS, Invocation

F = TypeVar("F", bound=Callable[..., Any])

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")


class Duration(click.ParamType[float]):
    """Seconds, or a number with its unit: 500ms, 10s, 5m, 2h, 1d."""

    name = "duration"
    wanted = "is no duration: write 500ms, 10s, 5m, 2h or 1d"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give seconds."""
        found = _DURATION.fullmatch(str(value))
        if found is None or float(found[1]) == 0:
            self.fail(f"{value!r} {self.wanted}", param, ctx)
        return float(found[1]) * _UNITS[found[2] or "s"]


def common_options(command: F) -> F:
    """Add the options that every command has; they end up in the Invocation."""
    for option in (
        _option("--timeout", "timeout_s", type=Duration(), metavar="TIME", help="How long to wait."),
        _option("--socket", "socket", type=click.Path(), help="The daemon's socket; default: $KSI_SOCKET."),
        _option("--json", "format", is_flag=True, flag_value="json", help="The same as -o json."),
        _option(
            "-o",
            "--output",
            "format",
            type=click.Choice(FORMATS),
            help="How to write; default: $KSI_OUTPUT, else table on a terminal and plain in a pipe.",
        ),
    ):
        command = option(command)
    return command


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    *flags, attribute = names

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ARG001  (click's)
        if value:
            setattr(ctx.ensure_object(Invocation), attribute, value)

    # A name of its own for each option: several set the same attribute.
    own = flags[-1].lstrip("-") + "_option"
    return click.option(*flags, own, expose_value=False, is_eager=True, callback=keep, **settings)
