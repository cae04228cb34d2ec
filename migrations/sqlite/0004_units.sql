-- Agent units: what agentd itself must remember of them. Never edited once merged.
-- `owner` is 'system' or 'uid:N'.

CREATE TABLE units (
    owner          TEXT NOT NULL,
    name           TEXT NOT NULL,
    uuid           TEXT NOT NULL UNIQUE,
    -- 1 or 0 once somebody said `enable` or `disable`; NULL: as the unit's file says.
    enabled        INTEGER,
    changed_at_ms  INTEGER NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT;

-- The texts that users handed over, so that a restarted agentd knows the units of agents that still run.
CREATE TABLE unit_files (
    owner   TEXT NOT NULL,
    place   TEXT NOT NULL,
    origin  TEXT NOT NULL,
    text    TEXT NOT NULL,
    PRIMARY KEY (owner, place)
) STRICT;
