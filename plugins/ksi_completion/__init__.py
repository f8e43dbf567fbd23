"""``completion:*`` and ``conversation:*``: ask a model, durably."""

from ksi_completion.handlers import (
    async_,
    cancel,
    get,
    ksi_drain,
    ksi_migrations,
    ksi_serve,
    ksi_services,
    ksi_startup,
    list_,
    provider_status,
    status,
    stream,
)

__all__ = [
    "async_",
    "cancel",
    "get",
    "ksi_drain",
    "ksi_migrations",
    "ksi_serve",
    "ksi_services",
    "ksi_startup",
    "list_",
    "provider_status",
    "status",
    "stream",
]
