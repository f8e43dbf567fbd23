"""``event:*``, ``blob:*``, ``deadletter:*``: the log, what its events refer to, and what failed for good."""

from ksi_events.blobs import read_blob, stat_blob
from ksi_events.consumers import ack, delete_consumer, list_consumers, nak
from ksi_events.dead_letters import discard, edit, export, list_letters, redrive, show_letter
from ksi_events.handlers import append, append_many, get, publish, query, read, subscribe
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
    "list_consumers",
    "list_letters",
    "nak",
    "publish",
    "query",
    "read",
    "read_blob",
    "redrive",
    "retention",
    "show_letter",
    "stat_blob",
    "subscribe",
    "sweep",
    "verify",
]
