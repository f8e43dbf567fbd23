-- Queues by namespace and key: the lowest number that has not expired is the next to be popped.
CREATE TABLE queue_items (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,   -- in the order pushed; never used twice
    namespace TEXT NOT NULL,
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,                       -- JSON
    expires   INTEGER                              -- microseconds since 1970; NULL: never
) STRICT;

CREATE INDEX queue_items_in_order ON queue_items (namespace, key, number, expires);
CREATE INDEX queue_items_expiring ON queue_items (expires) WHERE expires IS NOT NULL;
