//! Durable topics and queues: what the bus must not lose, kept in order.
//!
//! A *stream* is a sequence of records with offsets that count up from 0 without gaps and are never used again. One
//! durable topic or queue of one user is one stream. [`StreamStore`] is what the bus sees of it; there are two
//! implementations, which one conformance suite holds to the same promises:
//!
//! - [`segment`]: append-only files of its own, written through io_uring by one thread. The quick one.
//! - [`sqlite`]: rows in the record's database, written by the record's one writer, so that an acknowledgement can be
//!   one transaction with a task's state and the audit chain.
//!
//! Payloads are bytes to it: it never looks into them, never puts them into the audit chain, and never prints them.
//! No call blocks: each takes a [`Done`], which is called exactly once, from a thread of the store, and must not wait
//! there. What is told to be done is on the disk. Failures are [`StreamError`]s that name the stream and the next step.
//!
//! The guarantees are in `docs/bus.md`, the files in `docs/operations.md`, the reasons in ADR 24.

// Lists of ranges have one element more often than not.
#![allow(clippy::single_range_in_vec_init)]

mod compress;
#[cfg(test)]
mod conformance;
mod error;
pub mod segment;
pub mod sqlite;
mod types;

use std::{ops::Range, sync::Arc};

pub use agentd_segment::{Compression, Settled};
pub use error::StreamError;
pub use types::{
    Damage, Declared, NewRecord, ReadFrom, ReadLimit, Records, Retention, Settle, StoredRecord,
    StreamId, StreamKind, StreamName, StreamSpec, StreamStats,
};

/// Called exactly once with the outcome, on a thread of the store. It must not block: hand the outcome on.
pub type Done<T> = Box<dyn FnOnce(Result<T, StreamError>) + Send>;

/// Where streams are kept. Calls about one stream take effect in the order in which they are made.
pub trait StreamStore: Send + Sync + std::fmt::Debug {
    /// Which of the implementations it is, and how it writes: for the log and `agentctl doctor`.
    fn describe(&self) -> String;

    /// Makes a stream, or finds it; what it is to keep becomes `spec`.
    fn declare(&self, name: StreamName, spec: StreamSpec, done: Done<Declared>);

    /// Forgets a stream and everything in it. Its id is never used again.
    fn drop_stream(&self, stream: StreamId, done: Done<()>);

    /// Appends records in order; answers the first one's offset, the others follow. After a crash a batch that was not
    /// answered may be there whole, in part from its beginning, or not at all.
    fn append(&self, stream: StreamId, records: Vec<NewRecord>, done: Done<u64>);

    /// Says what became of records. Those that are done with are not given back by [`Self::unsettled`] any more, and may be
    /// forgotten; a mark comes back with its record. What was never appended, or is settled, is passed over.
    fn settle(&self, stream: StreamId, offsets: Vec<Range<u64>>, how: Settle, done: Done<()>);

    /// Records from a place on, in order, settled or not, as far as they are still kept.
    fn read(&self, stream: StreamId, from: ReadFrom, limit: ReadLimit, done: Done<Records>);

    /// Records from `from` on that have not been settled: what a queue gives out again after a start.
    fn unsettled(&self, stream: StreamId, from: u64, limit: ReadLimit, done: Done<Records>);

    /// Forgets what the stream's [`Retention`] does not keep any more, as of `now_ns` (since the Unix epoch). Answers how many
    /// records went. Stores forget whole segments at a time where they keep segments.
    fn retain(&self, stream: StreamId, now_ns: u64, done: Done<u64>);

    /// Every stream, by name, with its size and trouble.
    fn streams(&self, done: Done<Vec<StreamStats>>);

    /// Answers once everything asked before is on the disk.
    fn flush(&self, done: Done<()>);
}

/// Makes a [`Done`] and the receiver that its outcome comes out of, for callers that may wait.
pub fn waiter<T: Send + 'static>() -> (Done<T>, Waiter<T>) {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    // A caller that has stopped waiting needs no answer.
    let done: Done<T> = Box::new(move |outcome| drop(sender.send(outcome)));
    (done, Waiter(receiver))
}

/// See [`waiter`].
#[derive(Debug)]
pub struct Waiter<T>(std::sync::mpsc::Receiver<Result<T, StreamError>>);

impl<T> Waiter<T> {
    /// Blocks until the store has answered.
    ///
    /// # Errors
    /// The store's; [`StreamError::Closed`] if it went away without an answer.
    pub fn wait(self) -> Result<T, StreamError> {
        self.0.recv().unwrap_or(Err(StreamError::Closed))
    }
}

/// A payload as it is handed over: shared with whoever delivers it.
pub type Payload = Arc<[u8]>;
