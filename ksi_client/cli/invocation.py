"""What one run of `ksi` was asked for, apart from the command itself."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, cast

from ksi_client.raw import RawClient
from ksi_client.timeouts import TIMEOUT_S

Format = Literal["table", "json", "jsonl", "plain"]

FORMATS: Final = ("table", "json", "jsonl", "plain")


@dataclass(slots=True)
class Invocation:
    """The options that every command has."""

    format: Format = "plain"
    color: bool = False
    socket: str | None = None
    timeout_s: float | None = None
    argv: Sequence[str] = field(default_factory=list)

    @property
    def is_json(self) -> bool:
        """Tell whether what is written is for programs."""
        return self.format in ("json", "jsonl")

    def client(self, *, timeout_s: float = TIMEOUT_S) -> RawClient:
        """Give a client that fails at once where no daemon runs."""
        return RawClient(self.socket, connect_timeout_s=0.0, timeout_s=self.timeout_s or timeout_s)


def begin(argv: Sequence[str]) -> Invocation:
    """Give what the environment says: a terminal gets tables, a pipe plain lines, ``KSI_OUTPUT`` decides."""
    is_terminal = sys.stdout.isatty()
    chosen = os.environ.get("KSI_OUTPUT") or ("table" if is_terminal else "plain")
    return Invocation(
        format=cast("Format", chosen) if chosen in FORMATS else "plain",
        color=wants_color(os.environ, is_terminal=is_terminal),
        argv=argv,
    )


def wants_color(environ: Mapping[str, str], *, is_terminal: bool) -> bool:
    """Tell whether to colour: a terminal that can, unless ``NO_COLOR``; always with ``CLICOLOR_FORCE``."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("CLICOLOR_FORCE", "0") != "0":
        return True
    return is_terminal and environ.get("TERM") != "dumb"
