-- What failed for good, whatever tried it, until a person says what is to become of it.
CREATE TABLE dead_letters (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    kind           TEXT    NOT NULL,          -- event, job, step, message
    origin         TEXT    NOT NULL,          -- consumer, group, subscriber, timer, or a plugin's own word
    name           TEXT    NOT NULL,          -- which consumer, timer, ...
    event          TEXT    NOT NULL,
    event_id       TEXT,
    seq            INTEGER,                   -- in the log; NULL: it is no event of it
    stream         TEXT,
    version        INTEGER,
    data           TEXT,                      -- JSON
    original       TEXT,                      -- JSON, as it was before it was edited; NULL: it was not
    reference      TEXT,                      -- JSON {path, offset, length, sha256, media}: the data is there
    correlation_id TEXT,
    causation_id   TEXT,
    actor          TEXT    NOT NULL,
    time           INTEGER,                   -- when the event was told, microseconds since 1970
    attempts       INTEGER NOT NULL,          -- that failed
    reason         TEXT    NOT NULL,          -- the machine's word for what failed last
    message        TEXT    NOT NULL,          -- the same, for people
    first_failed   INTEGER NOT NULL,          -- microseconds since 1970
    last_failed    INTEGER NOT NULL,
    state          TEXT    NOT NULL,          -- dead, redriven, discarded
    redrives       INTEGER NOT NULL DEFAULT 0
);

-- An event that is given again and fails again is the same letter.
CREATE UNIQUE INDEX dead_letters_event ON dead_letters (origin, name, seq) WHERE seq IS NOT NULL;
CREATE INDEX dead_letters_state ON dead_letters (state, id);
