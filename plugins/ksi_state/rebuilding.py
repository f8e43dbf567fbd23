"""How the table of state is made of the log again."""

import orjson

from ksi_common.events.state import Changed, NamespaceCleared, Removed
from ksi_daemon.plugin import Rows, rebuilder


@rebuilder("state")
def rebuild_state(rows: Rows, event: Changed | Removed | NamespaceCleared) -> None:
    """Do what the store did."""
    match event:
        case Changed():
            extra = None if event.metadata is None else orjson.dumps(event.metadata).decode()
            rows.put(
                namespace=event.namespace,
                key=event.key,
                value=orjson.dumps(event.value).decode(),
                metadata=extra,
            )
        case Removed():
            rows.delete(namespace=event.namespace, key=event.key)
        case NamespaceCleared():
            rows.delete(namespace=event.namespace)
