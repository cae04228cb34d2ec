//! Why a stream could not be made, written or read, in sentences that say what to do next.

use std::{io, path::PathBuf, sync::Arc};

use super::{NewRecord, StreamId, StreamName};

/// Failures of a [`super::StreamStore`]. Cloned to everybody whose records were in the same commit.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The name can't be used.
    #[error(
        "a stream's name has 1 to {} bytes and no control characters; {name:?} has not",
        StreamName::MAX
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// No such stream (any more).
    #[error("there is no stream {}; declare it again", id.0)]
    Unknown {
        /// The id.
        id: StreamId,
    },
    /// One payload is too large.
    #[error(
        "a record of {bytes} bytes is too large for a stream: {} is the most",
        NewRecord::MAX
    )]
    RecordTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The payloads of one call are too large together.
    #[error(
        "{bytes} bytes in one batch are too much: {} is the most; send smaller batches",
        NewRecord::MAX_BATCH
    )]
    BatchTooLarge {
        /// Their size.
        bytes: usize,
    },
    /// More waits to be written than the store holds. Nothing of it was kept; try again.
    #[error(
        "more than {bytes} bytes wait to be written to streams; the disk is slower than the senders, try again"
    )]
    Overloaded {
        /// The bound.
        bytes: usize,
    },
    /// No room. Nothing that was acknowledged is lost.
    #[error("no room for the {name} in {}: free some on that file system, or let the stream keep less (`[bus.durable]`)", path.display())]
    Full {
        /// The stream.
        name: String,
        /// The folder or database.
        path: PathBuf,
    },
    /// The disk failed while writing. What was acknowledged before is kept; nothing more is written until a restart.
    #[error("writing the {name} failed ({call} of {}: {source}); look for errors of its disk in the kernel log, then restart agentd", path.display())]
    Write {
        /// The stream.
        name: String,
        /// The file.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk failed while reading.
    #[error("can't {call} {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The folder can't be used.
    #[error("can't keep streams in {}: {why}", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The record's database.
    #[error("{why}")]
    Record {
        /// What the record's store said.
        why: String,
    },
    /// The store has been closed.
    #[error("the store of streams is closed")]
    Closed,
}
