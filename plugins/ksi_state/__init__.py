"""``state:*``: values by namespace and key, for users."""

from ksi_state.handlers import clear, delete, get, ksi_migrations, ksi_services, list_, set_
from ksi_state.rebuilding import rebuild_state
from ksi_state.sessions import get_session, update_session

__all__ = [
    "clear",
    "delete",
    "get",
    "get_session",
    "ksi_migrations",
    "ksi_services",
    "list_",
    "rebuild_state",
    "set_",
    "update_session",
]
