"""``event:*``: tell, append, read, query and follow events."""

from ksi_events.handlers import append, get, publish, query, read, subscribe

__all__ = ["append", "get", "publish", "query", "read", "subscribe"]
