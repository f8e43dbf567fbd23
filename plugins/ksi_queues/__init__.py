"""``async_state:*``: queues by namespace and key: first in, first out, each item for a time."""

from ksi_queues.handlers import (
    delete,
    expire_queue,
    get_keys,
    get_queue,
    ksi_migrations,
    ksi_services,
    pop,
    push,
    queue_length,
    sweep,
)
from ksi_queues.rebuilding import rebuild_queues

__all__ = [
    "delete",
    "expire_queue",
    "get_keys",
    "get_queue",
    "ksi_migrations",
    "ksi_services",
    "pop",
    "push",
    "queue_length",
    "rebuild_queues",
    "sweep",
]
