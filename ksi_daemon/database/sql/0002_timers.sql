-- What is to be told or asked later. A row is gone once its message has been.
CREATE TABLE timers (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,  -- in order of setting; never used twice
    name           TEXT    NOT NULL UNIQUE,
    due            INTEGER NOT NULL,            -- microseconds since 1970
    event          TEXT    NOT NULL,
    data           BLOB    NOT NULL,            -- JSON
    attempts       INTEGER NOT NULL DEFAULT 0,  -- that failed
    correlation_id TEXT,                        -- of the event that set it; NULL: the daemon did by itself
    causation_id   TEXT,
    actor          TEXT
);

CREATE INDEX timers_due ON timers (due, id);
