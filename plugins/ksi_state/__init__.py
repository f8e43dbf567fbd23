"""``state:*``: values by namespace and key, for users."""

from ksi_state.handlers import clear, delete, get, ksi_migrations, ksi_services, list_, set_
from ksi_state.rebuilding import rebuild_state

__all__ = ["clear", "delete", "get", "ksi_migrations", "ksi_services", "list_", "rebuild_state", "set_"]
