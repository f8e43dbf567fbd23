-- Answers that are given again, and the processes that made answers.

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
