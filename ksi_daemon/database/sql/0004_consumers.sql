-- Cursors that the log keeps: of clients that follow under a name, of groups, of plugins' durable subscribers.
CREATE TABLE consumers (
    id           INTEGER PRIMARY KEY,
    kind         TEXT    NOT NULL,            -- consumer, group, subscriber
    name         TEXT    NOT NULL,
    stream       TEXT,                        -- events of this stream only
    position     INTEGER NOT NULL,            -- what it wants up to this seq is done, or in consumer_events
    max_attempts INTEGER NOT NULL,            -- that may fail, before an event is a dead letter
    created      INTEGER NOT NULL,            -- microseconds since 1970
    changed      INTEGER NOT NULL,            -- when something was last done, likewise
    UNIQUE (kind, name)
);

CREATE TABLE consumer_patterns (
    consumer INTEGER NOT NULL,
    pattern  TEXT    NOT NULL,
    PRIMARY KEY (consumer, pattern)
) WITHOUT ROWID;

-- What the position alone does not say: events done beyond it, and those to be given again.
CREATE TABLE consumer_events (
    consumer     INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    done         INTEGER NOT NULL,            -- 1: acknowledged, though an earlier one is not; 0: to be given again
    attempts     INTEGER NOT NULL DEFAULT 0,  -- that failed
    losses       INTEGER NOT NULL DEFAULT 0,  -- how often its member went while it had it
    due          INTEGER NOT NULL DEFAULT 0,  -- not to be given before, microseconds since 1970
    first_failed INTEGER,                     -- likewise
    letter       INTEGER,                     -- the dead letter that is given again; its data counts, not the log's
    PRIMARY KEY (consumer, seq)
) WITHOUT ROWID;
