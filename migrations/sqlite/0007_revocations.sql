-- Rights on the bus that were taken from a running agent, so that a restarted agentd goes on refusing them. One row for
-- each pattern; those of an agent that has ended mean nothing. Never edited once merged.

CREATE TABLE revocations (
    seq             INTEGER PRIMARY KEY,
    launch          TEXT NOT NULL REFERENCES launches (id) ON DELETE CASCADE,
    at_ms           INTEGER NOT NULL,
    -- send, request, publish, subscribe.
    kind            TEXT NOT NULL,
    pattern         TEXT NOT NULL,
    taken_by        TEXT NOT NULL,
    restored_at_ms  INTEGER,
    restored_by     TEXT
) STRICT;
CREATE INDEX revocations_in_force ON revocations (launch, seq) WHERE restored_at_ms IS NULL;
