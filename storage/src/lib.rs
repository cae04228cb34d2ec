//! The record: launches, messages, tokens, denials and exits, in SQLite.
