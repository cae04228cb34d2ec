-- What a request cost at the prices of the daemon's configuration, in billionths of a US dollar; NULL without a price.
-- Nullable, so that the audit chain's hashes of earlier rows stay what they are. Never edited once merged.

ALTER TABLE usage ADD COLUMN cost_nano_usd INTEGER;
