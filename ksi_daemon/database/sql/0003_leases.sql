-- Who may do what only one may do at a time. A row outlives its lease, so that the token never falls.
CREATE TABLE leases (
    name    TEXT    PRIMARY KEY,
    owner   TEXT,                 -- NULL: released
    token   INTEGER NOT NULL,     -- how often it was acquired
    expires INTEGER NOT NULL      -- microseconds since 1970
) WITHOUT ROWID;
