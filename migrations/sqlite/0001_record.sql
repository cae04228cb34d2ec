-- The record. Times are milliseconds since the Unix epoch. `seq` is handed out by the single writer and is unique
-- over all tables, so that a timeline is one merge. Lists and free-form parts are JSON. Never edited once merged.

CREATE TABLE launches (
    id            TEXT PRIMARY KEY,
    seq           INTEGER NOT NULL UNIQUE,
    at_ms         INTEGER NOT NULL,
    name          TEXT NOT NULL,
    uid           INTEGER NOT NULL,
    policy        TEXT NOT NULL,
    policy_hash   TEXT NOT NULL,
    argv          TEXT NOT NULL,
    workspace     TEXT,
    driver        TEXT NOT NULL,
    mode          TEXT NOT NULL,
    kernel        TEXT NOT NULL,
    details       TEXT NOT NULL,
    state         TEXT NOT NULL DEFAULT 'starting',
    -- Known once the sandbox stands:
    ready_at_ms   INTEGER,
    pid           INTEGER,
    host_uid      INTEGER,
    layers        TEXT NOT NULL DEFAULT '[]',
    landlock_abi  INTEGER,
    degradations  TEXT NOT NULL DEFAULT '[]'
) STRICT;
CREATE INDEX launches_by_uid  ON launches (uid, seq);
CREATE INDEX launches_by_name ON launches (name, seq);

-- Facts that are only read as part of the timeline: ready, launch-failed, state, note.
CREATE TABLE events (
    seq     INTEGER PRIMARY KEY,
    launch  TEXT NOT NULL REFERENCES launches (id) ON DELETE CASCADE,
    at_ms   INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_launch ON events (launch, seq);

CREATE TABLE exits (
    launch     TEXT PRIMARY KEY REFERENCES launches (id) ON DELETE CASCADE,
    seq        INTEGER NOT NULL UNIQUE,
    at_ms      INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    code       INTEGER,
    signal     INTEGER,
    cause      TEXT NOT NULL,
    resources  TEXT NOT NULL
) STRICT;

CREATE TABLE messages (
    seq          INTEGER PRIMARY KEY,
    launch       TEXT NOT NULL REFERENCES launches (id) ON DELETE CASCADE,
    to_launch    TEXT REFERENCES launches (id) ON DELETE SET NULL,
    at_ms        INTEGER NOT NULL,
    id           TEXT NOT NULL,
    sender       TEXT NOT NULL,
    receiver     TEXT NOT NULL,
    kind         TEXT NOT NULL,
    subject      TEXT,
    correlation  TEXT,
    bytes        INTEGER NOT NULL,
    outcome      TEXT NOT NULL
) STRICT;
CREATE INDEX messages_by_launch    ON messages (launch, seq);
CREATE INDEX messages_by_to_launch ON messages (to_launch, seq) WHERE to_launch IS NOT NULL;

CREATE TABLE usage (
    seq          INTEGER PRIMARY KEY,
    launch       TEXT NOT NULL REFERENCES launches (id) ON DELETE CASCADE,
    at_ms        INTEGER NOT NULL,
    source       TEXT NOT NULL,
    provider     TEXT NOT NULL,
    model        TEXT NOT NULL,
    request_id   TEXT,
    input        INTEGER NOT NULL,
    output       INTEGER NOT NULL,
    cache_read   INTEGER NOT NULL,
    cache_write  INTEGER NOT NULL,
    aborted      INTEGER NOT NULL,
    estimated    INTEGER NOT NULL
) STRICT;
CREATE INDEX usage_by_launch ON usage (launch, seq);

CREATE TABLE denials (
    seq     INTEGER PRIMARY KEY,
    launch  TEXT NOT NULL REFERENCES launches (id) ON DELETE CASCADE,
    at_ms   INTEGER NOT NULL,
    layer   TEXT NOT NULL,
    what    TEXT NOT NULL,
    target  TEXT NOT NULL,
    rule    TEXT NOT NULL,
    origin  TEXT
) STRICT;
CREATE INDEX denials_by_launch ON denials (launch, seq);

CREATE TABLE approvals (
    seq         INTEGER PRIMARY KEY,
    launch      TEXT NOT NULL REFERENCES launches (id) ON DELETE CASCADE,
    at_ms       INTEGER NOT NULL,
    request_id  TEXT NOT NULL,
    tool        TEXT NOT NULL,
    decision    TEXT NOT NULL,
    decided_by  TEXT NOT NULL,
    reason      TEXT NOT NULL
) STRICT;
CREATE INDEX approvals_by_launch ON approvals (launch, seq);

CREATE TABLE driver_lines (
    seq        INTEGER PRIMARY KEY,
    launch     TEXT NOT NULL REFERENCES launches (id) ON DELETE CASCADE,
    at_ms      INTEGER NOT NULL,
    direction  TEXT NOT NULL,
    line       TEXT NOT NULL
) STRICT;
CREATE INDEX driver_lines_by_launch ON driver_lines (launch, seq);
