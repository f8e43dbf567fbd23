"""``timer:*``: what becomes of timers."""

from pydantic import JsonValue

from ksi_common.messages import Notification


class Failed(Notification, event="timer:failed"):
    """A timer was given up: what it asked for was refused, or failed too often."""

    name: str
    event: str
    data: dict[str, JsonValue]
    """What it asked with, so that it can be asked again."""
    code: str
    error: str
    attempts: int
