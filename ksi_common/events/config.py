"""``config:*``: the daemon's settings, read again while it runs."""

from typing import Literal

from pydantic import Field

from ksi_common.errors import InvalidArgument
from ksi_common.messages import Message, Request

Component = Literal["all", "log"]


class Reloaded(Message):
    """What became of settings that were changed. Names are dotted, as docs/reference/settings.md has them."""

    status: Literal["reloaded"] = "reloaded"
    component: Component
    reloaded_components: list[str]
    """Tables of which something is in force that was not."""
    changed: list[str]
    """Settings that are in force now."""
    needs_restart: list[str]
    """Settings that differ, and that only a start of the daemon puts in force."""


class Reload(Request[Reloaded], event="config:reload", idempotent=True, raises=(InvalidArgument,)):
    """Read ksi.toml again, as SIGHUP does; where it cannot be read, or is wrong, all stays as it was."""

    component: Component = Field("all", description="Which table; all of them by default.")
