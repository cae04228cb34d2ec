-- What pruning looks for: launches that ended long ago, protocol lines that are old. Never edited once merged.

CREATE INDEX exits_by_time        ON exits (at_ms);
CREATE INDEX driver_lines_by_time ON driver_lines (at_ms);
