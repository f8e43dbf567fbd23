"""How decorated functions are recognised."""

from typing import Final, Literal

from ksi_common.records import record

KSI_API: Final = "1"
"""The version of what plugins are written with."""

HANDLER: Final = "__ksi_handler__"
SUBSCRIBER: Final = "__ksi_subscriber__"
PROJECTION: Final = "__ksi_projection__"
REBUILDER: Final = "__ksi_rebuilder__"
UPCASTER: Final = "__ksi_upcaster__"
DURABLE: Final = "__ksi_durable__"


@record
class Durable:
    """How a durable subscriber wants its events."""

    start: Literal["now", "beginning"] = "now"
    """Where to begin the first time."""
    max_attempts: int = 5
    retry_s: float = 1.0
    """After the first failure; doubled with each, up to a minute."""
