"""State, made of the log: a projection with a table. `ksi call projection:query name=state_values`."""

import json

from ksi_common.events.state import Changed, NamespaceCleared, Removed
from ksi_daemon.plugin import Rows, table_projection


@table_projection("namespace TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (namespace, key)")
def state_values(rows: Rows, event: Changed | Removed | NamespaceCleared) -> None:
    """Do with a row what the event says was done."""
    match event:
        case Changed(namespace=namespace, key=key, value=value):
            rows.put(namespace=namespace, key=key, value=json.dumps(value))
        case Removed(namespace=namespace, key=key):
            rows.delete(namespace=namespace, key=key)
        case NamespaceCleared(namespace=namespace):
            rows.delete(namespace=namespace)
