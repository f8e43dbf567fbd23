"""``event:*``, ``projection:*``, ``blob:*``, ``deadletter:*``: the log, and what is made of it."""

from ksi_events.blobs import read_blob, stat_blob
from ksi_events.consumers import ack, delete_consumer, list_consumers, nak
from ksi_events.dead_letters import discard, edit, export, list_letters, redrive, show_letter
from ksi_events.handlers import append, append_many, get, publish, query, read, subscribe
from ksi_events.projections import get_projection, list_projections, query_projection, rebuild_projection
from ksi_events.replay import replay
from ksi_events.retention import retention, sweep
from ksi_events.verification import acknowledge_loss, verify

__all__ = [
    "ack",
    "acknowledge_loss",
    "append",
    "append_many",
    "delete_consumer",
    "discard",
    "edit",
    "export",
    "get",
    "get_projection",
    "list_consumers",
    "list_letters",
    "list_projections",
    "nak",
    "publish",
    "query",
    "query_projection",
    "read",
    "read_blob",
    "rebuild_projection",
    "redrive",
    "replay",
    "retention",
    "show_letter",
    "stat_blob",
    "subscribe",
    "sweep",
    "verify",
]
