"""The layers around every handler, outermost first.

correlation -> errors -> observation -> deadline -> permissions -> idempotency -> router -> plugins'
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

from ksi_daemon.outcomes import Endpoint, Middleware

CORE_LAYERS: Final = ("correlation", "errors", "observation", "deadline", "permissions", "idempotency")


def compose(middleware: Sequence[Middleware], innermost: Endpoint) -> Endpoint:
    """Wrap ``innermost`` in ``middleware``, the first one outermost. Done once, at load."""
    endpoint = innermost
    for layer in reversed(middleware):
        endpoint = partial(layer, call_next=endpoint)
    return endpoint
