-- Where a line of a driver's protocol ends in its stream (in: bytes of the agent's stdout, out: bytes of its stdin, newlines
-- included), so that a restarted agentd goes on exactly behind the last line on record.

ALTER TABLE driver_lines ADD COLUMN end_offset INTEGER;
