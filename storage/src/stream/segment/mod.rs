//! Streams in append-only files of their own.
//!
//! Each stream is a folder of *segments*: a header block, then records with a CRC-32C over header
//! and payload, then reserved space. One thread writes ([`writer`]): everything that was asked
//! during the last sync goes to the disk in one commit, with direct I/O and through io_uring where
//! the host has them and they pay ([`disk`], [`ring`]), and is answered behind the sync. Settled
//! offsets are records in the same segments, and a segment begins with a checkpoint of them, so
//! that a start reads the last segment only ([`recover`]). Where records are is kept in memory and
//! found again by reading. The bytes are those of `agentd-segment`.
//!
//! Runs under agentd's user, three threads: writing, reading ([`reader`]), and reserving space
//! ([`tail`]). It never overwrites what was acknowledged but for the same bytes again (the rest of
//! a block), and never guesses: what can't be read is named, put aside and told.

mod disk;
mod folder;
mod pace;
mod reader;
mod recover;
mod ring;
mod state;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::HashMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
};

pub use disk::Disk;

use reader::{Question, What};
use state::Streams;
use writer::{Command, Writer, space_of, space_to_settle};

use super::{
    Declared, Done, NewRecord, ReadFrom, ReadLimit, Records, Settle, StreamError, StreamId,
    StreamName, StreamSpec, StreamStats, StreamStore,
};

/// Bytes that may wait for the writer.
const WAITING: usize = 64 << 20;

/// How large segments are, bytes. The first of a stream is small, each next one up to twice the last.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Of a stream that has just begun.
    pub segment_min: u64,
    /// Of a stream that has much to keep.
    pub segment_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_min: 1 << 20,
            segment_max: 64 << 20,
        }
    }
}

/// Streams in a folder. Dropping it ends it as [`SegmentStore::close`] does.
#[derive(Debug)]
pub struct SegmentStore {
    root: PathBuf,
    how: String,
    streams: Arc<Streams>,
    commands: Sender<Command>,
    questions: Option<Sender<Question>>,
    waiting: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    _lock: File,
}

impl SegmentStore {
    /// Opens the streams in `root`, or makes the folder. The texts are what somebody should know: what was cut off or found
    /// damaged. Blocks while the last segments are read.
    ///
    /// # Errors
    /// [`StreamError::Open`], [`StreamError::Read`].
    pub fn open(
        root: &Path,
        disk: Disk,
        options: Options,
    ) -> Result<(Self, Vec<String>), StreamError> {
        let lock = folder::lock(root)?;
        let (described, last_id) = folder::list(root)?;
        let (streams, mut notes) = (Arc::new(Streams::default()), Vec::new());
        for stream in described {
            streams.insert(Arc::new(recover::open(stream, &mut notes)?));
        }
        let how = format!("segments in {}, {}", root.display(), disk.describe());
        let (commands, asked) = mpsc::channel();
        let (questions, to_read) = mpsc::channel();
        let (spares, wanted) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            root: root.to_owned(),
            options,
            disk,
            streams: streams.clone(),
            last_id,
            spares,
            waiting: waiting.clone(),
            tails: HashMap::new(),
            failed: HashMap::new(),
        };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
            spawned.map_err(|error| folder::open_error(root, &error))
        };
        let threads = vec![
            spawn("stream-writer", Box::new(move || writer.run(&asked)))?,
            spawn("stream-reader", Box::new(move || reader::run(&to_read)))?,
            spawn(
                "stream-spares",
                Box::new(move || tail::make_spares(&wanted)),
            )?,
        ];
        let store = Self {
            root: root.to_owned(),
            how,
            streams,
            commands,
            questions: Some(questions),
            waiting,
            threads,
            _lock: lock,
        };
        Ok((store, notes))
    }

    /// Writes what waits, marks the end of each stream, and lets go of the folder.
    pub fn close(self) {
        drop(self);
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Gives the writer a command that takes `space` bytes, unless too many wait.
    fn ask<T>(&self, space: usize, done: Done<T>, command: impl FnOnce(Done<T>) -> Command) {
        if space > NewRecord::MAX_BATCH {
            return done(Err(StreamError::BatchTooLarge { bytes: space }));
        }
        if space > 0 && self.waiting.fetch_add(space, Ordering::Relaxed) + space > WAITING {
            self.waiting.fetch_sub(space, Ordering::Relaxed);
            return done(Err(StreamError::Overloaded { bytes: WAITING }));
        }
        // The writer's thread is there as long as this handle is; if it panicked, `done` goes unanswered, and whoever
        // waits for it sees that.
        drop(self.commands.send(command(done)));
    }

    fn question(&self, stream: StreamId, what: What, limit: ReadLimit, done: Done<Records>) {
        let stream = match self.streams.get(stream) {
            Ok(stream) => stream,
            Err(error) => return done(Err(error)),
        };
        let question = Question {
            stream,
            what,
            limit,
            done,
        };
        if let Some(questions) = &self.questions {
            drop(questions.send(question));
        }
    }
}

impl StreamStore for SegmentStore {
    fn describe(&self) -> String {
        self.how.clone()
    }

    fn declare(&self, name: StreamName, spec: StreamSpec, done: Done<Declared>) {
        self.ask(0, done, |done| Command::Declare(name, spec, done));
    }

    fn drop_stream(&self, stream: StreamId, done: Done<()>) {
        self.ask(0, done, |done| Command::Drop(stream, done));
    }

    fn append(&self, stream: StreamId, records: Vec<NewRecord>, done: Done<u64>) {
        let sizes = records.iter().map(|record| record.payload.len());
        if let Some(bytes) = sizes.max().filter(|size| *size > NewRecord::MAX) {
            return done(Err(StreamError::RecordTooLarge { bytes }));
        }
        self.ask(space_of(&records), done, |done| {
            Command::Append(stream, records, done)
        });
    }

    fn settle(&self, stream: StreamId, offsets: Vec<Range<u64>>, how: Settle, done: Done<()>) {
        self.ask(space_to_settle(offsets.len()), done, |done| {
            Command::Settle(stream, offsets, how, done)
        });
    }

    fn read(&self, stream: StreamId, from: ReadFrom, limit: ReadLimit, done: Done<Records>) {
        self.question(stream, What::All(from), limit, done);
    }

    fn unsettled(&self, stream: StreamId, from: u64, limit: ReadLimit, done: Done<Records>) {
        self.question(stream, What::Unsettled(from), limit, done);
    }

    fn retain(&self, stream: StreamId, now_ns: u64, done: Done<u64>) {
        self.ask(0, done, |done| Command::Retain(stream, now_ns, done));
    }

    fn streams(&self, done: Done<Vec<StreamStats>>) {
        done(Ok(self.streams.stats()));
    }

    fn flush(&self, done: Done<()>) {
        self.ask(0, done, Command::Flush);
    }
}

impl Drop for SegmentStore {
    fn drop(&mut self) {
        self.commands.send(Command::Close).unwrap_or_default();
        drop(self.questions.take());
        for thread in self.threads.drain(..) {
            // The last handle may go in an answer, on the thread itself: it ends right after. One that panicked has said so.
            if thread.thread().id() != thread::current().id() {
                drop(thread.join());
            }
        }
    }
}
