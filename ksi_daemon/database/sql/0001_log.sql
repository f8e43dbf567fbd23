-- Everything that happened. A notification has its data; a request that changed something has its digest only.
CREATE TABLE log (
    seq            INTEGER PRIMARY KEY,   -- commit order, gapless from 1, of this node
    event_id       TEXT    NOT NULL,
    kind           INTEGER NOT NULL,      -- 0 notification, 1 request
    name           TEXT    NOT NULL,
    stream         TEXT,
    version        INTEGER,               -- in the stream: 1, 2, 3, ...
    correlation_id TEXT    NOT NULL,
    causation_id   TEXT,
    actor          TEXT    NOT NULL,
    node           TEXT,                  -- where it was told; NULL: here
    origin_id      TEXT,                  -- its id there
    hop            INTEGER NOT NULL,
    time           INTEGER NOT NULL,      -- microseconds since 1970
    data           TEXT,                  -- JSON; NULL: a request, or retention took it
    reference      TEXT,                  -- JSON {path, offset, length, sha256, media}: the data is there
    digest         BLOB    NOT NULL,      -- SHA-256 of what it says
    chain          BLOB    NOT NULL       -- SHA-256 of the chain before, seq and digest
);

-- No further index here: each costs a fifth of the write rate. The others are filled in idle moments.
CREATE UNIQUE INDEX log_event_id ON log (event_id);
CREATE UNIQUE INDEX log_stream ON log (stream, version) WHERE stream IS NOT NULL;

-- Facts of the database itself, by name.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;
