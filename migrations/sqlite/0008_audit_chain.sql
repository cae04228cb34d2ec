-- The audit chain (docs/record.md): an entry for every version of every row, each with the hash of the one before it.
-- Ordered by row, because that is how entries are looked for when rows are forgotten. Never edited once merged.

CREATE TABLE chain (
    -- Of the row: its seq, or what stands for a group of rows. Which table: storage/src/audit/content.rs.
    key        INTEGER NOT NULL,
    tbl        INTEGER NOT NULL,
    -- Place in the chain, without gaps but for checkpoints.
    n          INTEGER NOT NULL,
    -- SHA-256 of the row's content; of the entry before.
    digest     BLOB NOT NULL,
    prev       BLOB NOT NULL,
    -- Of the last entry of a commit: when, and the Ed25519 signature of the head.
    at_ms      INTEGER,
    signature  BLOB,
    PRIMARY KEY (key, tbl, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX chain_heads ON chain (n) WHERE signature IS NOT NULL;

-- What stands in for entries that were forgotten.
CREATE TABLE checkpoints (
    first      INTEGER PRIMARY KEY,
    last       INTEGER NOT NULL UNIQUE,
    -- Link of the entry before the first, and of the last.
    before     BLOB NOT NULL,
    link       BLOB NOT NULL,
    at_ms      INTEGER NOT NULL,
    why        TEXT NOT NULL,
    signature  BLOB NOT NULL
) STRICT;

-- What the chain says about itself.
CREATE TABLE chain_notes (
    seq     INTEGER PRIMARY KEY,
    at_ms   INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;
