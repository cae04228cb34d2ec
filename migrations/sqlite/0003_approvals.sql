-- Questions that a person decides, and the decisions to be remembered. A question is written before anybody is shown
-- it and settled before the agent is answered; the decision itself is also a row of `approvals`. Times are
-- milliseconds since the Unix epoch. Never edited once merged.

CREATE TABLE questions (
    id             TEXT PRIMARY KEY,
    seq            INTEGER NOT NULL UNIQUE,
    launch         TEXT NOT NULL REFERENCES launches (id) ON DELETE CASCADE,
    uid            INTEGER NOT NULL,
    -- Of the question in the agent's own protocol; agents use ids again.
    request_id     TEXT NOT NULL,
    kind           TEXT NOT NULL,
    tool           TEXT NOT NULL,
    input          TEXT NOT NULL,
    rule           TEXT NOT NULL,
    asked_at_ms    INTEGER NOT NULL,
    expires_at_ms  INTEGER NOT NULL,
    decided_at_ms  INTEGER,
    decision       TEXT,
    decided_by     TEXT,
    scope          TEXT,
    reason         TEXT
) STRICT;
CREATE INDEX questions_by_launch ON questions (launch, seq);
CREATE INDEX questions_open ON questions (uid) WHERE decided_at_ms IS NULL;

-- Outlives the launch it was made in, so it refers to none.
CREATE TABLE standing_rules (
    id             TEXT PRIMARY KEY,
    seq            INTEGER NOT NULL UNIQUE,
    uid            INTEGER NOT NULL,
    scope          TEXT NOT NULL,
    subject        TEXT NOT NULL,
    kind           TEXT NOT NULL,
    decision       TEXT NOT NULL,
    covers         TEXT NOT NULL,
    made_at_ms     INTEGER NOT NULL,
    made_by        TEXT NOT NULL,
    question       TEXT NOT NULL,
    revoked_at_ms  INTEGER,
    revoked_by     TEXT
) STRICT;
CREATE INDEX standing_rules_in_force ON standing_rules (uid) WHERE revoked_at_ms IS NULL;
