-- What was asked under an idempotency key, for as long as a retry may come; in the order asked.
CREATE TABLE idempotency_keys (
    id       INTEGER PRIMARY KEY,
    time     INTEGER NOT NULL,  -- microseconds since 1970
    actor    TEXT    NOT NULL,
    event    TEXT    NOT NULL,
    key      TEXT    NOT NULL,
    digest   BLOB    NOT NULL,  -- SHA-256 of the data
    event_id TEXT    NOT NULL,  -- of the request that did it
    reply    TEXT,              -- JSON
    error    TEXT               -- JSON; neither: it was done, and its answer is not known
);

-- The key first: those that one client makes are neighbours, and so are their entries here.
CREATE UNIQUE INDEX idempotency_keys_name ON idempotency_keys (key, event, actor);
