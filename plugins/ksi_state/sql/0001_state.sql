-- Values by namespace and key. A row is there or it is not; a stored null is the JSON text null.
CREATE TABLE state (
    namespace TEXT NOT NULL,
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,   -- JSON
    metadata  TEXT,            -- JSON object
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;
