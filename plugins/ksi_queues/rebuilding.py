"""How the queues are made of the log again."""

import orjson

from ksi_common.events.async_state import ItemPopped, ItemPushed, ItemsExpired, QueueDeleted, QueueExpiring
from ksi_daemon.plugin import Rows, parse_time, rebuilder

_EXPIRE = (
    "UPDATE {table} SET expires = ?1 WHERE namespace = ?2 AND key = ?3 AND number <= ?4 "
    "AND (expires IS NULL OR expires > ?1)"
)


@rebuilder("queue_items")
def rebuild_queues(
    rows: Rows, event: ItemPushed | ItemPopped | QueueDeleted | QueueExpiring | ItemsExpired
) -> None:
    """Do what the queues did."""
    match event:
        case ItemPushed():
            rows.put(
                number=event.number,
                namespace=event.namespace,
                key=event.key,
                value=orjson.dumps(event.data).decode(),
                expires=None if event.expires is None else parse_time(event.expires),
            )
        case ItemPopped():
            rows.delete(number=event.number)
        case QueueDeleted():
            rows.delete(namespace=event.namespace, key=event.key)
        case QueueExpiring():
            rows.execute(_EXPIRE, (parse_time(event.expires), event.namespace, event.key, event.number))
        case ItemsExpired():
            for number in event.numbers:
                rows.delete(number=number)
