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
    status,
    stream,
)
from ksi_completion.manager_handlers import (
    get_budget,
    list_budgets,
    provider_status,
    remove_budget,
    set_budget,
    token_usage,
)

__all__ = [
    "async_",
    "cancel",
    "get",
    "get_budget",
    "ksi_drain",
    "ksi_migrations",
    "ksi_serve",
    "ksi_services",
    "ksi_startup",
    "list_",
    "list_budgets",
    "provider_status",
    "remove_budget",
    "set_budget",
    "status",
    "stream",
    "token_usage",
]
