-- Durable topics and queues, where they are kept in the record (docs/bus.md). Never edited once merged.

-- A stream, in the audit chain. One that is dropped stays as a row, so that its id is never used again.
CREATE TABLE streams (
    seq             INTEGER PRIMARY KEY,
    id              INTEGER NOT NULL UNIQUE,
    uid             INTEGER NOT NULL,
    -- topic, queue
    kind            TEXT NOT NULL,
    name            TEXT NOT NULL,
    at_ms           INTEGER NOT NULL,
    max_bytes       INTEGER,
    max_age_ms      INTEGER,
    compression     INTEGER NOT NULL,
    compress_above  INTEGER NOT NULL,
    settings        TEXT NOT NULL,
    dropped_at_ms   INTEGER
) STRICT;
CREATE UNIQUE INDEX streams_live ON streams (uid, kind, name) WHERE dropped_at_ms IS NULL;

-- How far a stream is. Not in the chain: it moves with every record.
CREATE TABLE stream_ends (
    stream      INTEGER PRIMARY KEY REFERENCES streams (id),
    -- The offset that the next record gets.
    next        INTEGER NOT NULL,
    -- No record is younger, ns since the Unix epoch.
    last_at_ns  INTEGER NOT NULL
) STRICT;

-- Records that are not settled. Payloads are in no chain: they come and go, and the record keeps no contents for ever.
CREATE TABLE stream_records (
    -- stream * 2^40 + offset
    key          INTEGER PRIMARY KEY,
    at_ns        INTEGER NOT NULL,
    -- 0 none, 1 LZ4, 2 Zstandard
    compression  INTEGER NOT NULL,
    -- Bytes of the payload before it was compressed.
    raw_len      INTEGER NOT NULL,
    mark         INTEGER NOT NULL DEFAULT 0,
    payload      BLOB NOT NULL
) STRICT;
