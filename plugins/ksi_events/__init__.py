"""``event:*``: tell, append, read, query and follow events; ``projection:*``: what is made of them."""

from ksi_events.handlers import append, get, publish, query, read, subscribe
from ksi_events.projections import get_projection, list_projections, query_projection, rebuild_projection
from ksi_events.replay import replay

__all__ = [
    "append",
    "get",
    "get_projection",
    "list_projections",
    "publish",
    "query",
    "query_projection",
    "read",
    "rebuild_projection",
    "replay",
    "subscribe",
]
