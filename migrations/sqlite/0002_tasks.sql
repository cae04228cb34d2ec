-- Tasks. `seq` comes from the same counter as every other fact's, so that one order holds over all tables. Terms are JSON
-- (orchestrator::task::Terms). Moments of the boot clock hold while `boot_id` does; the wall-clock columns beside them
-- say the same for after a reboot. Never edited once merged.

CREATE TABLE tasks (
    seq                 INTEGER PRIMARY KEY,
    id                  TEXT NOT NULL UNIQUE,
    at_ms               INTEGER NOT NULL,
    uid                 INTEGER NOT NULL,
    submitted_by        TEXT NOT NULL,
    request_id          TEXT,
    text                TEXT NOT NULL,
    terms               TEXT NOT NULL,
    parent              TEXT REFERENCES tasks (id) ON DELETE CASCADE,
    retry_of            TEXT,
    depth               INTEGER NOT NULL,
    boot_id             TEXT NOT NULL,
    queued_boot_ms      INTEGER NOT NULL,
    deadline_boot_ms    INTEGER,
    deadline_ms         INTEGER,
    -- What moves:
    state               TEXT NOT NULL,
    cause               TEXT NOT NULL,
    changed_at_ms       INTEGER NOT NULL,
    attempt             INTEGER NOT NULL DEFAULT 0,
    launch              TEXT,
    agent               TEXT,
    turn                INTEGER,
    not_before_boot_id  TEXT,
    not_before_boot_ms  INTEGER,
    not_before_ms       INTEGER,
    -- The answer of the attempt that succeeded, or what the last failed one said:
    result              TEXT,
    error               TEXT
) STRICT;
CREATE INDEX tasks_by_uid ON tasks (uid, seq);
CREATE UNIQUE INDEX tasks_by_request ON tasks (uid, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX tasks_by_parent ON tasks (parent, seq) WHERE parent IS NOT NULL;
CREATE INDEX tasks_open ON tasks (state, seq) WHERE state IN ('waiting', 'queued', 'assigned', 'running');

CREATE TABLE task_transitions (
    seq         INTEGER PRIMARY KEY,
    task        TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    at_ms       INTEGER NOT NULL,
    from_state  TEXT NOT NULL,
    to_state    TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    launch      TEXT,
    agent       TEXT,
    cause       TEXT NOT NULL
) STRICT;
CREATE INDEX task_transitions_by_task ON task_transitions (task, seq);

CREATE TABLE task_dependencies (
    task   TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    needs  TEXT NOT NULL,
    PRIMARY KEY (task, needs)
) STRICT, WITHOUT ROWID;
CREATE INDEX task_dependencies_by_need ON task_dependencies (needs);
