-- Answers that are given again, the processes that made answers, and text that waits to be a part of prompts.

CREATE TABLE completion_cache (
    key TEXT PRIMARY KEY,                       -- sha256 of provider, model, messages and parameters
    stored_us INTEGER NOT NULL,
    answer BLOB NOT NULL                        -- JSON, as the provider gave it
) STRICT, WITHOUT ROWID;

CREATE INDEX completion_cache_by_time ON completion_cache (stored_us);

CREATE TABLE processes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,   -- in the order of their starts
    pid INTEGER NOT NULL,
    pid_started INTEGER NOT NULL,               -- clock ticks since the boot
    boot_id TEXT NOT NULL,
    purpose TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('running', 'completed', 'failed', 'dead')),
    started_us INTEGER NOT NULL,
    ended_us INTEGER,
    exit_code INTEGER,
    exit_signal INTEGER,
    pids_gone TEXT                              -- that were killed with it, by spaces
) STRICT;

CREATE INDEX processes_running ON processes (number) WHERE status = 'running';

CREATE TABLE injections (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    injection_id TEXT NOT NULL UNIQUE,
    session_id TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('next', 'direct')),
    content TEXT NOT NULL,
    tokens INTEGER NOT NULL,                    -- estimated
    depth INTEGER NOT NULL,
    position TEXT NOT NULL CHECK (position IN ('before_prompt', 'after_prompt')),
    style TEXT NOT NULL CHECK (style IN ('system_reminder', 'plain')),
    priority INTEGER NOT NULL,
    agent_id TEXT,
    model TEXT,
    provider TEXT,
    metadata TEXT NOT NULL,                     -- JSON, the sender's own
    queued_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    request_id TEXT                             -- of the completion that took it; NULL while it waits
) STRICT;

CREATE INDEX injections_waiting ON injections (session_id, priority) WHERE request_id IS NULL;
CREATE INDEX injections_by_time ON injections (session_id, queued_us);
CREATE INDEX injections_by_request ON injections (request_id) WHERE request_id IS NOT NULL;
