-- What waits, and for what: priorities, next tries, pauses; and what else a request may say.

ALTER TABLE completions ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;      -- between sessions, the highest first
ALTER TABLE completions ADD COLUMN workflow_id TEXT;
ALTER TABLE completions ADD COLUMN has_tools INTEGER NOT NULL DEFAULT 0;     -- there is a row of completion_tools
ALTER TABLE completions ADD COLUMN next_try_us INTEGER;                      -- while it waits for that
ALTER TABLE completions ADD COLUMN worked_ms INTEGER NOT NULL DEFAULT 0;     -- of its time, what failed tries took
ALTER TABLE completions ADD COLUMN last_reason TEXT;                         -- of the last try that failed
ALTER TABLE completions ADD COLUMN last_message TEXT;
ALTER TABLE completions ADD COLUMN faults INTEGER NOT NULL DEFAULT 0;        -- bugs of ours that it met
ALTER TABLE completions ADD COLUMN dead_us INTEGER;                          -- set aside since then, for a person
ALTER TABLE completions ADD COLUMN proof_pids TEXT;                          -- that ended for a cancel, by spaces
ALTER TABLE completions ADD COLUMN provider_changed INTEGER;                 -- since the session's answer before

CREATE INDEX completions_retrying ON completions (next_try_us) WHERE next_try_us IS NOT NULL;

CREATE TABLE completion_tools (
    request_id TEXT PRIMARY KEY REFERENCES completions (request_id),
    allowed TEXT,                               -- names, by spaces; NULL where nobody restricted them
    tools TEXT,                                 -- as the request has them
    response_schema TEXT                        -- as the request has it
) STRICT, WITHOUT ROWID;

CREATE TABLE completion_pauses (
    scope TEXT NOT NULL CHECK (scope IN ('queue', 'session', 'provider')),
    name TEXT NOT NULL,
    reason TEXT NOT NULL,
    since_us INTEGER NOT NULL,
    PRIMARY KEY (scope, name, reason)
) STRICT, WITHOUT ROWID;
