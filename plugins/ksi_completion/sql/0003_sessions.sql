-- What a session goes on from: who gave its last answer, under what id, and what it was forked from.

ALTER TABLE completion_sessions ADD COLUMN provider TEXT;           -- of its last answer
ALTER TABLE completion_sessions ADD COLUMN model TEXT;
ALTER TABLE completion_sessions ADD COLUMN provider_session TEXT;   -- that provider's own id, from its result
ALTER TABLE completion_sessions ADD COLUMN resume_at TEXT;          -- that provider's id of the last good turn
ALTER TABLE completion_sessions ADD COLUMN forked_from TEXT;

CREATE TABLE completion_lineage (
    session_id TEXT NOT NULL REFERENCES completion_sessions (session_id),
    ancestor_id TEXT NOT NULL REFERENCES completion_sessions (session_id),
    upto INTEGER NOT NULL,                      -- the number of the ancestor's last completion that it has
    PRIMARY KEY (session_id, ancestor_id)
) STRICT, WITHOUT ROWID;
