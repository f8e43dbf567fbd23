-- What the writer keeps in idle moments: indexes of the log up to meta's `indexed_to`, filled in slices.
CREATE TABLE log_names (
    name TEXT    NOT NULL,
    seq  INTEGER NOT NULL,
    PRIMARY KEY (name, seq)
) WITHOUT ROWID;

CREATE TABLE log_correlations (
    correlation_id TEXT    NOT NULL,
    seq            INTEGER NOT NULL,
    PRIMARY KEY (correlation_id, seq)
) WITHOUT ROWID;

CREATE TABLE log_actors (
    actor TEXT    NOT NULL,
    seq   INTEGER NOT NULL,
    PRIMARY KEY (actor, seq)
) WITHOUT ROWID;

-- The times within each 1024 positions: clocks jump, so a time may be in several blocks.
CREATE TABLE log_times (
    block    INTEGER PRIMARY KEY,   -- seq / 1024
    earliest INTEGER NOT NULL,
    latest   INTEGER NOT NULL
);

-- Versions that streams had reached when retention deleted their last row: they go on from there.
CREATE TABLE compacted_streams (
    stream  TEXT    PRIMARY KEY,
    version INTEGER NOT NULL
) WITHOUT ROWID;
