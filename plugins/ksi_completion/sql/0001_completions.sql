-- What was asked of models, and how it ended. Answers are lines of files; their rows say where.

CREATE TABLE completion_sessions (
    session_id TEXT PRIMARY KEY,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    file_end INTEGER NOT NULL DEFAULT 0,        -- where the last line that a row names ends, in the session's file
    message_count INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE INDEX completion_sessions_by_time ON completion_sessions (updated_us);

CREATE TABLE completions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,   -- the order of acceptance
    request_id TEXT NOT NULL UNIQUE,
    session_id TEXT NOT NULL REFERENCES completion_sessions (session_id),
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'completed', 'failed', 'cancelled')),
    digest TEXT NOT NULL,                       -- of what was asked: the same request_id must ask the same
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    max_tokens INTEGER,
    timeout_s REAL NOT NULL,
    agent_id TEXT,
    originator_agent_id TEXT,
    purpose TEXT,
    event_id TEXT NOT NULL,                     -- of the request, and what travels with it
    correlation_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    hop INTEGER NOT NULL,
    accepted_us INTEGER NOT NULL,
    started_us INTEGER,
    ended_us INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,        -- begun, those that a crash ended too
    failures INTEGER NOT NULL DEFAULT 0,        -- attempts that a provider failed
    cancel_wanted INTEGER NOT NULL DEFAULT 0,
    duration_ms INTEGER,
    finish_reason TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    cached_tokens INTEGER,
    failure_reason TEXT,
    failure_message TEXT,
    failure_retryable INTEGER,
    proof_how TEXT,
    proof_elapsed_s REAL,
    offset INTEGER,                             -- of its line in the session's file
    length INTEGER,
    sha256 TEXT,
    CHECK ((state IN ('queued', 'running')) = (sha256 IS NULL))
) STRICT;

CREATE INDEX completions_open ON completions (session_id, number) WHERE sha256 IS NULL;
CREATE INDEX completions_by_session ON completions (session_id, number);

CREATE TABLE completion_messages (
    request_id TEXT NOT NULL REFERENCES completions (request_id),
    position INTEGER NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
    text TEXT,                                  -- NULL where a blob holds it
    blob_path TEXT,
    blob_length INTEGER,
    blob_sha256 TEXT,
    PRIMARY KEY (request_id, position),
    CHECK ((text IS NULL) = (blob_sha256 IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE token_usage (
    request_id TEXT NOT NULL REFERENCES completions (request_id),
    attempt INTEGER NOT NULL,
    session_id TEXT NOT NULL,
    agent_id TEXT,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    day TEXT NOT NULL,                          -- UTC, 2026-01-31
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    PRIMARY KEY (request_id, attempt)           -- a call is accounted for once
) STRICT, WITHOUT ROWID;
