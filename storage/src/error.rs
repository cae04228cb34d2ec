//! Why the record could not be opened, written or read, in sentences that say what to do next.

use std::path::{Path, PathBuf};

use crate::audit::KeyError;

/// Failures of the store. Every message names the database file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder or file can't be made, opened or written.
    #[error("can't open the record {}: {why}; check that its folder exists and is writable by agentd, or name another with --state-dir", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Another daemon has it open.
    #[error("the record {} is in use by another agentd; stop that one, or start this one with another --state-dir", path.display())]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// Not a database, or a damaged one.
    #[error(
        "the record {} is damaged or no SQLite database ({why}); `agentctl db recover` saves what can be read into a new one and keeps this one",
        path.display()
    )]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        why: String,
    },
    /// Written by a newer agentd.
    #[error("the record {} was written by a newer agentd (migration {found}, this one knows up to {known}); install that version again, or name another --state-dir", path.display())]
    NewerSchema {
        /// The database file.
        path: PathBuf,
        /// The unknown migration.
        found: i64,
        /// The newest known one.
        known: i64,
    },
    /// A known migration differs from the one that was applied.
    #[error("the record {} has a different form of migration {version} than this agentd; it was made by an unreleased build: move it away", path.display())]
    ForeignSchema {
        /// The database file.
        path: PathBuf,
        /// The migration that differs.
        version: i64,
    },
    /// No room left.
    #[error("the disk of the record {} is full; nothing new is begun until there is room: free some on that file system, or remove old launches with `agentctl prune`", path.display())]
    Full {
        /// The database file.
        path: PathBuf,
    },
    /// The file or its file system can't be written.
    #[error("the record {} can't be written: {why}", path.display())]
    ReadOnly {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        why: String,
    },
    /// The event belongs to a launch that was never recorded, or repeats one.
    #[error("can't put this {kind} of launch {launch} on record: {why}")]
    Refused {
        /// Kind of the event.
        kind: &'static str,
        /// The launch it names.
        launch: String,
        /// The broken rule.
        why: String,
    },
    /// The key that signs the record is not there or can't be used.
    #[error("the record {} can't be signed", path.display())]
    Key {
        /// The database file.
        path: PathBuf,
        /// What is wrong with the key.
        source: KeyError,
    },
    /// The store has been closed.
    #[error("the record is closed")]
    Closed,
    /// The writer's queue is full (only from `try_record`).
    #[error("the record's queue is full")]
    QueueFull,
    /// Anything else SQLite said.
    #[error("the record {}: {why}", path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        why: String,
    },
}

// Primary SQLite result codes: https://www.sqlite.org/rescode.html
const SQLITE_BUSY: i32 = 5;
const SQLITE_READONLY: i32 = 8;
const SQLITE_IOERR: i32 = 10;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_CANTOPEN: i32 = 14;
const SQLITE_CONSTRAINT: i32 = 19;
const SQLITE_NOTADB: i32 = 26;

/// The primary result code of an error from SQLite, if it is one.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<i32>().ok().map(|extended| extended & 0xff)
}

/// Whether the statement broke a constraint: the fault of one event, not of the database.
pub(crate) fn is_constraint(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(SQLITE_CONSTRAINT)
}

/// Gives an error of SQLite its public form.
pub(crate) fn classify(path: &Path, error: &sqlx::Error) -> StoreError {
    let path = path.to_owned();
    let why = match error.as_database_error() {
        Some(database) => database.message().to_owned(),
        None => error.to_string(),
    };
    match primary_code(error) {
        Some(SQLITE_BUSY) => StoreError::InUse { path },
        Some(SQLITE_FULL) => StoreError::Full { path },
        Some(SQLITE_READONLY) => StoreError::ReadOnly { path, why },
        Some(SQLITE_CANTOPEN) => StoreError::Open { path, why },
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => StoreError::Corrupt { path, why },
        Some(SQLITE_IOERR) => StoreError::Database {
            why: format!("{why}; look for errors of its disk in the kernel log"),
            path,
        },
        _ => StoreError::Database { path, why },
    }
}
