-- What the managers keep: who may not be asked now, what each call used, and how much may be used.

CREATE TABLE completion_breakers (
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    failures INTEGER NOT NULL,                  -- in a row
    opened_us INTEGER NOT NULL,                 -- 0 where it is closed
    open_s REAL NOT NULL,
    reason TEXT NOT NULL,                       -- of the last failure
    message TEXT NOT NULL,
    PRIMARY KEY (provider, model)
) STRICT, WITHOUT ROWID;

ALTER TABLE completions ADD COLUMN alias TEXT;  -- the name that stands for several models, if one was asked for

-- Of the calls that were there before no price is known, nor when in their day they ended.
ALTER TABLE token_usage ADD COLUMN time_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE token_usage ADD COLUMN outcome TEXT NOT NULL DEFAULT 'answered'
    CHECK (outcome IN ('answered', 'failed', 'stopped'));
ALTER TABLE token_usage ADD COLUMN cache_creation_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE token_usage ADD COLUMN cost_usd REAL;
UPDATE token_usage SET time_us = unixepoch(day) * 1000000;
CREATE INDEX token_usage_by_session ON token_usage (session_id, day);
CREATE INDEX token_usage_by_agent ON token_usage (agent_id, day) WHERE agent_id IS NOT NULL;
CREATE INDEX token_usage_by_day ON token_usage (day);

CREATE TABLE budgets (
    name TEXT PRIMARY KEY,                      -- scope/subject/per
    scope TEXT NOT NULL CHECK (scope IN ('session', 'agent', 'all')),
    subject TEXT NOT NULL,                      -- '*': each one has a budget of this size
    per TEXT NOT NULL CHECK (per IN ('ever', 'day')),
    tokens INTEGER,
    cost_usd REAL,
    set_us INTEGER NOT NULL,
    CHECK (tokens IS NOT NULL OR cost_usd IS NOT NULL)
) STRICT, WITHOUT ROWID;
