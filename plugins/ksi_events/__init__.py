"""``event:*`` and ``blob:*``: tell, append, read, query, follow, verify; and read what events refer to."""

from ksi_events.blobs import read_blob, stat_blob
from ksi_events.handlers import append, append_many, get, publish, query, read, subscribe
from ksi_events.verification import acknowledge_loss, verify

__all__ = [
    "acknowledge_loss",
    "append",
    "append_many",
    "get",
    "publish",
    "query",
    "read",
    "read_blob",
    "stat_blob",
    "subscribe",
    "verify",
]
