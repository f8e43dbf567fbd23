"""How decorated functions are recognised."""

from typing import Final

HANDLER: Final = "__ksi_handler__"
SUBSCRIBER: Final = "__ksi_subscriber__"
PROJECTION: Final = "__ksi_projection__"
REBUILDER: Final = "__ksi_rebuilder__"
UPCASTER: Final = "__ksi_upcaster__"
