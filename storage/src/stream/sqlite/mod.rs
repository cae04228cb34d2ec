//! Streams in the record's database.
//!
//! Their rows are written by the record's one writer, in its transactions: whatever else was asked during the last commit goes
//! with them, and [`SqliteStreams::record_together`] makes a settled message and a task's new state one commit that is there
//! whole or not at all. A stream's declaration is in the audit chain; its records are not (ADR 24). A settled record
//! is a row that is gone.
//!
//! Calls are put in order by one task on the daemon's runtime, which also compresses; reading uses the record's readers. It
//! fails as the record does, and says so with the record's own words.

mod book;
mod read;
mod work;

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

pub(crate) use book::Book;
pub(crate) use work::{Outcome, StreamJob, StreamOp, carry_out};

use super::{
    Compression, Declared, Done, NewRecord, ReadFrom, ReadLimit, Records, Settle, StreamError,
    StreamId, StreamName, StreamSpec, StreamStats, StreamStore, compress::compress,
};
use crate::{
    error::StoreError,
    event::unix_ms,
    store::Store,
    task::{TaskBatch, TaskTaken},
};

/// Bytes that may wait to be written.
const WAITING: usize = 64 << 20;
/// What a row costs besides its payload.
const ROW: usize = 32;

/// Streams in the record. Cloning shares them.
#[derive(Clone, Debug)]
pub struct SqliteStreams {
    store: Store,
    runtime: Handle,
    waiting: Arc<AtomicUsize>,
    ordered: mpsc::UnboundedSender<Ordered>,
}

/// What has to happen in the order in which it was asked.
#[derive(Debug)]
struct Ordered {
    job: StreamJob,
    weight: usize,
}

/// What is to be one transaction: all of it is on the disk, or nothing is.
#[derive(Debug, Default)]
pub struct Together {
    /// What became of messages.
    pub settle: Vec<(StreamId, Vec<Range<u64>>, Settle)>,
    /// New messages, such as a result.
    pub append: Vec<(StreamId, Vec<NewRecord>)>,
    /// What happened to tasks, and facts for the record such as tokens that were spent.
    pub tasks: TaskBatch,
}

/// What came of [`Together`].
#[derive(Debug, Default)]
pub struct Recorded {
    /// The first offset of each append, in order.
    pub offsets: Vec<u64>,
    /// What became of the new tasks, in order.
    pub tasks: Vec<TaskTaken>,
}

impl SqliteStreams {
    /// The streams of a record. Must run inside a tokio runtime, on which its task then lives until the last clone has gone.
    pub fn new(store: Store) -> Self {
        let (ordered, asked) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        tokio::spawn(feed(store.clone(), asked, waiting.clone()));
        Self {
            store,
            runtime: Handle::current(),
            waiting,
            ordered,
        }
    }

    /// Records messages, tasks and facts in one commit.
    ///
    /// # Errors
    /// [`StreamError::Unknown`] and the record's own; nothing of it is on record then.
    pub async fn record_together(&self, together: Together) -> Result<Recorded, StreamError> {
        let mut ops = Vec::new();
        for (stream, records) in together.append {
            check(&records)?;
            ops.push(StreamOp::Append(stream, records, Compressed::No));
        }
        let appends = ops.len();
        for (stream, ranges, how) in together.settle {
            ops.push(StreamOp::Settle(stream, ranges, how));
        }
        let (done, answer) = oneshot::channel();
        let job = StreamJob::new(ops, move |outcome| {
            // Whoever does not wait any more needs no answer.
            drop(done.send(outcome));
        });
        let tasks = self.store.record_with(together.tasks, job);
        let tasks = tasks.await;
        let outcomes = answer.await.map_err(|_gone| StreamError::Closed)??;
        let tasks = tasks.map_err(|error| refused(self.store.path(), &error))?;
        let offset = |outcome: &Outcome| match outcome {
            Outcome::Offset(offset) => *offset,
            _ => 0,
        };
        Ok(Recorded {
            offsets: outcomes.iter().take(appends).map(offset).collect(),
            tasks,
        })
    }

    /// Queues one operation; its outcome goes to `done` through `take`.
    fn ask<T: 'static>(
        &self,
        op: StreamOp,
        weight: usize,
        done: Done<T>,
        take: fn(Outcome) -> Option<T>,
    ) {
        if weight > NewRecord::MAX_BATCH {
            return done(Err(StreamError::BatchTooLarge { bytes: weight }));
        }
        if weight > 0 && self.waiting.fetch_add(weight, Ordering::Relaxed) + weight > WAITING {
            self.waiting.fetch_sub(weight, Ordering::Relaxed);
            return done(Err(StreamError::Overloaded { bytes: WAITING }));
        }
        let job = StreamJob::new(vec![op], move |outcome| {
            let one = outcome.and_then(|mut outcomes| {
                let one = outcomes.pop().and_then(take);
                one.ok_or(StreamError::Closed)
            });
            done(one);
        });
        // The task is there as long as this handle is.
        drop(self.ordered.send(Ordered { job, weight }));
    }
}

/// Whether records can be appended at all; how many bytes wait with them.
fn check(records: &[NewRecord]) -> Result<usize, StreamError> {
    let largest = records.iter().map(|record| record.payload.len()).max();
    match largest {
        Some(bytes) if bytes > NewRecord::MAX => Err(StreamError::RecordTooLarge { bytes }),
        _ => Ok(records.iter().map(|it| it.payload.len() + ROW).sum()),
    }
}

/// Whether payloads were looked at already.
#[derive(Debug)]
pub(crate) enum Compressed {
    No,
    Yes(Vec<(Compression, Option<Vec<u8>>)>),
}

/// Hands what was asked to the writer, in order, as it has room; ends with the last handle.
async fn feed(
    store: Store,
    mut asked: mpsc::UnboundedReceiver<Ordered>,
    waiting: Arc<AtomicUsize>,
) {
    let mut specs = std::collections::HashMap::<StreamId, StreamSpec>::new();
    while let Some(Ordered { mut job, weight }) = asked.recv().await {
        for op in &mut job.ops {
            if let StreamOp::Append(stream, records, compressed) = op {
                let spec = match specs.get(stream) {
                    Some(spec) => Some(spec),
                    None => {
                        // Of an earlier start, or not there.
                        let found = read::spec(&store, *stream).await.ok().flatten();
                        found.map(|spec| &*specs.entry(*stream).or_insert(spec))
                    }
                };
                if let Some(spec) = spec.filter(|spec| spec.compression != Compression::None) {
                    let done = records.iter().map(|it| compress(spec, &it.payload));
                    *compressed = Compressed::Yes(done.collect());
                }
            } else if matches!(op, StreamOp::Declare(..)) {
                specs.clear();
            }
        }
        // If the record is closed, the job's own answer has said so.
        drop(store.enqueue_streams(job).await);
        waiting.fetch_sub(weight, Ordering::Relaxed);
    }
}

/// The record's trouble as a stream's.
pub(crate) fn refused(path: &Path, error: &StoreError) -> StreamError {
    match error {
        StoreError::Closed => StreamError::Closed,
        StoreError::Full { .. } => StreamError::Full {
            name: "streams in the record".to_owned(),
            path: path.to_owned(),
        },
        other => StreamError::Record {
            why: other.to_string(),
        },
    }
}

impl StreamStore for SqliteStreams {
    fn describe(&self) -> String {
        format!("rows of the record {}", self.store.path().display())
    }

    fn declare(&self, name: StreamName, spec: StreamSpec, done: Done<Declared>) {
        if let Err(error) = name.check() {
            return done(Err(error));
        }
        let op = StreamOp::Declare(name, spec, unix_ms());
        self.ask(op, 0, done, |outcome| match outcome {
            Outcome::Declared(declared) => Some(declared),
            _ => None,
        });
    }

    fn drop_stream(&self, stream: StreamId, done: Done<()>) {
        self.ask(StreamOp::Drop(stream, unix_ms()), 0, done, |_| Some(()));
    }

    fn append(&self, stream: StreamId, records: Vec<NewRecord>, done: Done<u64>) {
        let weight = match check(&records) {
            Ok(weight) => weight,
            Err(error) => return done(Err(error)),
        };
        let op = StreamOp::Append(stream, records, Compressed::No);
        self.ask(op, weight, done, |outcome| match outcome {
            Outcome::Offset(offset) => Some(offset),
            _ => None,
        });
    }

    fn settle(&self, stream: StreamId, offsets: Vec<Range<u64>>, how: Settle, done: Done<()>) {
        let weight = offsets.len() * ROW;
        let op = StreamOp::Settle(stream, offsets, how);
        self.ask(op, weight, done, |_| Some(()));
    }

    fn read(&self, stream: StreamId, from: ReadFrom, limit: ReadLimit, done: Done<Records>) {
        let store = self.store.clone();
        self.runtime.spawn(async move {
            done(read::records(&store, stream, from, limit).await);
        });
    }

    fn unsettled(&self, stream: StreamId, from: u64, limit: ReadLimit, done: Done<Records>) {
        // What is settled is gone.
        self.read(stream, ReadFrom::Offset(from), limit, done);
    }

    fn retain(&self, stream: StreamId, now_ns: u64, done: Done<u64>) {
        let op = StreamOp::Retain(stream, now_ns);
        self.ask(op, 0, done, |outcome| match outcome {
            Outcome::Count(count) => Some(count),
            _ => None,
        });
    }

    fn streams(&self, done: Done<Vec<StreamStats>>) {
        let store = self.store.clone();
        self.runtime
            .spawn(async move { done(read::streams(&store).await) });
    }

    fn flush(&self, done: Done<()>) {
        let job = StreamJob::new(Vec::new(), move |outcome| done(outcome.map(drop)));
        drop(self.ordered.send(Ordered { job, weight: 0 }));
    }
}

#[cfg(test)]
mod tests;
