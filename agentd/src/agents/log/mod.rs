//! What an agent wrote, as an append-only stream of bytes that is cut into segments, readable while it grows.
//!
//! Bytes are *moved* into the log by `splice(2)`, at an explicit offset that is always the end of the file: the kernel
//! takes from the pipe exactly what it added to the file, so a daemon that is killed at any instruction leaves every
//! byte either in the pipe or in the file, once. Where a file system can't splice, bytes are read and written instead,
//! and a kill between the two loses what was read. Nothing is synced: losing the last output in a power cut is what
//! every log does.
//!
//! A log keeps the newest bytes, up to its limit, in segments of a quarter of it. Every byte has an *offset*: how many
//! bytes the agent wrote before it, for ever; viewers, reconnecting clients and the driver count in offsets. While the
//! disk is full, a log goes on in memory, bounded, and moves to the disk when there is room; what neither takes is
//! counted and told to readers as a gap. The agent is never stopped by its log.
//!
//! Shared by the pump (writes), viewers and `logs` (read through a [`Cursor`]); a mutex holds the segments for the
//! length of one system call.

mod cursor;
mod read;
mod segment;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use tokio::sync::{Notify, watch};

use self::segment::{Mark, Place, Segment, Stem};
use super::stdio::Stream;

pub use self::cursor::{Cursor, Piece};
pub use self::read::{Extent, Follow, follow, read};

/// How much is moved at once: what a pipe holds.
const MOVE_BYTES: usize = 64 * 1024;
/// The smallest limit; less would lose output that a reader is just being sent.
pub const MIN_LIMIT_BYTES: u64 = 256 * 1024;
/// The limit of a driven agent's journal: several of the longest lines that a driver takes.
pub const JOURNAL_LIMIT_BYTES: u64 = 4 * agentd_orchestrator::driver::MAX_LINE_BYTES as u64;
/// Segments per log.
const SEGMENTS: u64 = 4;
/// Index entries per segment.
const MAX_MARKS: usize = 32 * 1024;
/// How often the index notes the time while output comes.
const TIME_NOTE: Duration = Duration::from_secs(1);
/// What a log may hold in memory while the disk is full, in segments of a quarter.
const MEMORY_BYTES: u64 = 1024 * 1024;
/// How long to go on in memory before trying the disk again.
const DISK_RETRY: Duration = Duration::from_secs(1);
/// How far a reader that may not miss anything can be behind before the log takes no more.
const HELD_BYTES: u64 = 128 * 1024;

/// How long the log is, and whether it can still grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogState {
    /// Offset of the oldest byte that is kept.
    pub start: u64,
    /// Offset after the newest byte.
    pub end: u64,
    /// Bytes that neither disk nor memory could take.
    pub dropped_bytes: u64,
    pub closed: bool,
}

/// What became of an attempt to take output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Bytes(usize),
    /// There is nothing at present.
    Nothing,
    /// The other side has closed.
    End,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot {verb} {path}")]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a pipe")]
    Pipe(#[source] io::Error),
}

/// A log. Its writer is the pump; there may be any number of readers.
#[derive(Debug)]
pub struct OutputLog {
    stem: Stem,
    segment_bytes: u64,
    limit_bytes: u64,
    inner: Mutex<Inner>,
    state: watch::Sender<LogState>,
    /// Readers that hold the log back have read on, or left.
    progress: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Oldest first; the last one grows while the log is open.
    segments: VecDeque<Segment>,
    last_stream: Option<Stream>,
    last_time: Option<Instant>,
    disk_tried: Option<Instant>,
    /// Positions of the readers that may not miss anything, by a number of their own.
    holders: Vec<(u64, u64)>,
    next_holder: u64,
}

impl OutputLog {
    /// Creates the log whose first segment is `path`, which must not exist.
    pub fn create(path: &Path, limit_bytes: u64) -> Result<Self, LogError> {
        let stem = Stem::of(path);
        let first = Segment::create(&stem, 0).map_err(file_error("create", path))?;
        Ok(Self::with(stem, limit_bytes, [first].into()))
    }

    /// Opens the log of a living agent that an earlier process of the daemon wrote, to go on at its end.
    pub fn reopen(path: &Path, limit_bytes: u64) -> Result<Self, LogError> {
        let stem = Stem::of(path);
        let mut segments = finished_segments(&stem, path)?;
        let last = match segments.pop_back() {
            Some(last) => Segment::reopen(&stem, last.base),
            None => Segment::create(&stem, 0),
        };
        segments.push_back(last.map_err(file_error("open", path))?);
        Ok(Self::with(stem, limit_bytes, segments))
    }

    /// Opens the log of an agent that has ended.
    pub fn finished(path: &Path) -> Result<Self, LogError> {
        let stem = Stem::of(path);
        let segments = finished_segments(&stem, path)?;
        if segments.is_empty() {
            return Err(file_error("open", path)(io::ErrorKind::NotFound.into()));
        }
        let log = Self::with(stem, MIN_LIMIT_BYTES, segments);
        log.close();
        Ok(log)
    }

    fn with(stem: Stem, limit_bytes: u64, segments: VecDeque<Segment>) -> Self {
        let limit_bytes = limit_bytes.max(MIN_LIMIT_BYTES);
        let state = LogState {
            start: segments.front().map_or(0, |first| first.base),
            end: segments.back().map_or(0, Segment::end),
            ..LogState::default()
        };
        let last_stream = segments
            .back()
            .and_then(Segment::open)
            .and_then(|open| open.marks.last())
            .map(|mark| mark.stream);
        Self {
            stem,
            segment_bytes: limit_bytes / SEGMENTS,
            limit_bytes,
            inner: Mutex::new(Inner {
                segments,
                last_stream,
                ..Inner::default()
            }),
            state: watch::Sender::new(state),
            progress: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> LogState {
        *self.state.borrow()
    }

    /// Follows the log as it grows.
    pub fn subscribe(&self) -> watch::Receiver<LogState> {
        self.state.subscribe()
    }

    /// Moves what `pipe` holds into the log, at most 64 KiB of it. `pipe` is read, without waiting.
    ///
    /// # Errors
    /// Only of the pipe: what the disk can't take goes to memory, or is dropped and counted.
    pub fn take(&self, stream: Stream, pipe: BorrowedFd<'_>) -> io::Result<Taken> {
        let mut inner = self.inner();
        self.make_room(&mut inner, stream, MOVE_BYTES as u64);
        let taken = loop {
            let segment = inner.growing();
            let Some(open) = segment.open() else {
                return Err(io::ErrorKind::BrokenPipe.into());
            };
            let mut at = segment.len;
            let flags = SpliceFlags::NONBLOCK;
            match rustix::pipe::splice(pipe, None, &*open.file, Some(&mut at), MOVE_BYTES, flags) {
                Ok(0) => break Taken::End,
                Ok(n) => {
                    segment.len += n as u64;
                    break Taken::Bytes(n);
                }
                Err(Errno::AGAIN) => break Taken::Nothing,
                Err(Errno::INTR) => {}
                // A file system that can't splice, or one that took nothing.
                Err(Errno::INVAL) => break self.copy(&mut inner, stream, pipe)?,
                Err(errno) => {
                    if !self.go_to_memory(&mut inner, stream, errno.into()) {
                        break self.discard(&mut inner, pipe)?;
                    }
                }
            }
        };
        self.publish(&inner);
        Ok(taken)
    }

    /// Appends `bytes` that are not in a pipe: what the daemon itself says.
    pub fn append(&self, stream: Stream, bytes: &[u8]) {
        let mut inner = self.inner();
        for piece in bytes.chunks(MOVE_BYTES) {
            self.make_room(&mut inner, stream, piece.len() as u64);
            self.write(&mut inner, stream, piece);
        }
        self.publish(&inner);
    }

    /// No more output will come: followers end, and the files are closed.
    pub fn close(&self) {
        let mut inner = self.inner();
        self.try_disk(&mut inner);
        if let Some(last) = inner.segments.back_mut() {
            last.finish();
        }
        drop(inner);
        self.state.send_modify(|state| state.closed = true);
    }

    /// Removes its files: what was in it is kept elsewhere.
    pub fn remove(&self) {
        self.close();
        let mut inner = self.inner();
        for segment in inner.segments.drain(..) {
            let path = self.stem.segment(segment.base);
            if let Err(error) = segment::remove(&path) {
                tracing::warn!(path = %path.display(), "it stays: {error}");
            }
        }
    }

    /// Tries to bring to the disk what is held in memory; for when there is room again.
    pub fn flush_to_disk(&self) {
        let mut inner = self.inner();
        self.try_disk(&mut inner);
        if self.state().closed
            && let Some(last) = inner.segments.back_mut()
        {
            last.finish();
        }
    }

    /// Whether part of the log is in memory, because the disk had no room.
    pub fn is_in_memory(&self) -> bool {
        self.inner().segments.iter().any(Segment::is_memory)
    }

    /// Resolves when no reader that may not miss anything is far behind. The pump waits for it before it takes more,
    /// and so an agent waits for the reader, as with a pipe.
    pub async fn room(&self) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let inner = self.inner();
                let end = inner.end();
                let furthest = inner.holders.iter().map(|(_, at)| end.saturating_sub(*at));
                if furthest.max().is_none_or(|lag| lag < HELD_BYTES) {
                    return;
                }
            }
            progress.await;
        }
    }

    /// Sees to it that the growing segment can take `bytes` of `stream`: rotates, removes the oldest, notes the stream.
    fn make_room(&self, inner: &mut Inner, stream: Stream, bytes: u64) {
        let growing = inner.growing();
        let limit = if growing.is_memory() {
            MEMORY_BYTES / SEGMENTS
        } else {
            self.segment_bytes
        };
        let marks = growing.open().map_or(0, |open| open.marks.len());
        let full = growing.len > 0 && (growing.cost() + bytes > limit || marks >= MAX_MARKS);
        if growing.is_memory() {
            let due = inner
                .disk_tried
                .is_none_or(|tried| tried.elapsed() >= DISK_RETRY);
            if due {
                self.try_disk(inner);
            }
        }
        if full {
            self.rotate(inner);
        }
        self.note(inner, stream);
    }

    /// Begins another segment where the present one is. Where that can't be done, the present one grows on.
    fn rotate(&self, inner: &mut Inner) {
        let end = inner.end();
        let next = if inner.growing().is_memory() {
            Segment::in_memory(end)
        } else {
            Segment::create(&self.stem, end)
        };
        match next {
            Ok(next) => {
                inner.growing().finish();
                inner.segments.push_back(next);
                inner.last_stream = None;
                inner.last_time = None;
            }
            Err(error) => {
                tracing::debug!(log = %self.stem.segment(end).display(), "no further segment yet: {error}");
            }
        }
        self.remove_oldest(inner);
    }

    /// Keeps what the limits allow: room for one more segment, on the disk as in memory.
    fn remove_oldest(&self, inner: &mut Inner) {
        let kept = |inner: &Inner, memory: bool| -> u64 {
            let segments = inner.segments.iter().rev().skip(1);
            segments
                .filter(|s| s.is_memory() == memory)
                .map(Segment::cost)
                .sum()
        };
        while kept(inner, false) + self.segment_bytes > self.limit_bytes {
            let Some(Segment {
                place: Place::Disk(path, _),
                ..
            }) = inner.segments.pop_front()
            else {
                break;
            };
            if let Err(error) = segment::remove(&path) {
                tracing::warn!(path = %path.display(), "an old part of a log stays: {error}");
            }
        }
        while kept(inner, true) + MEMORY_BYTES / SEGMENTS > MEMORY_BYTES {
            let Some(oldest) = inner.segments.iter().position(Segment::is_memory) else {
                break;
            };
            let lost = inner.segments.remove(oldest).map_or(0, |s| s.len);
            self.state.send_modify(|state| state.dropped_bytes += lost);
        }
    }

    /// Puts the stream, and now and then the time, into the index before the bytes come.
    fn note(&self, inner: &mut Inner, stream: Stream) {
        let changed = inner.last_stream.unwrap_or(Stream::Stdout) != stream;
        let due = inner
            .last_time
            .is_none_or(|noted| noted.elapsed() >= TIME_NOTE);
        if !changed && !due {
            return;
        }
        let mark = Mark {
            offset: inner.end(),
            stream,
            at_ms: u64::try_from(agentd_storage::unix_ms()).unwrap_or(0),
        };
        inner.last_stream = Some(stream);
        inner.last_time = Some(Instant::now());
        if let Err(error) = inner.growing().mark(mark)
            && self.go_to_memory(inner, stream, error)
        {
            inner.last_stream = Some(stream);
        }
    }

    /// The disk takes no more: goes on in memory. `false` if that is no way out either.
    fn go_to_memory(&self, inner: &mut Inner, stream: Stream, error: io::Error) -> bool {
        if inner.growing().is_memory() {
            tracing::debug!("memory takes no more output: {error}");
            return false;
        }
        let end = inner.end();
        tracing::error!(
            path = %self.stem.segment(end).display(),
            "cannot write output to the disk ({error}); the newest {} KiB are kept in memory until it has room",
            MEMORY_BYTES / 1024
        );
        let memory = Segment::in_memory(end).and_then(|mut memory| {
            memory.mark(Mark {
                offset: end,
                stream,
                at_ms: u64::try_from(agentd_storage::unix_ms()).unwrap_or(0),
            })?;
            Ok(memory)
        });
        match memory {
            Ok(memory) => {
                inner.growing().finish();
                inner.segments.push_back(memory);
                inner.disk_tried = Some(Instant::now());
                true
            }
            Err(error) => {
                tracing::error!("no memory for output either: {error}");
                false
            }
        }
    }

    /// Brings the segments in memory to the disk, as far as it takes them.
    fn try_disk(&self, inner: &mut Inner) {
        let Some(first) = inner.segments.iter().position(Segment::is_memory) else {
            return;
        };
        inner.disk_tried = Some(Instant::now());
        let last = inner.segments.len() - 1;
        for at in first..=last {
            let path = self.stem.segment(inner.segments[at].base);
            match to_disk(&self.stem, &inner.segments[at]) {
                Ok(mut segment) => {
                    if at < last {
                        segment.finish();
                    }
                    inner.segments[at] = segment;
                    tracing::info!(path = %path.display(), "the disk takes output again");
                }
                Err(error) => {
                    tracing::debug!("the disk still takes no output: {error}");
                    if let Err(error) = segment::remove(&path) {
                        tracing::debug!("and what was begun stays: {error}");
                    }
                    return;
                }
            }
        }
    }

    /// Writes bytes that the daemon holds; to memory where the disk takes none.
    fn write(&self, inner: &mut Inner, stream: Stream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let segment = inner.growing();
            let Some(open) = segment.open() else { return };
            match open.file.write_at(bytes, segment.len) {
                Ok(n) if n > 0 => {
                    segment.len += n as u64;
                    bytes = &bytes[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                full => {
                    let error = full.err().unwrap_or(io::ErrorKind::WriteZero.into());
                    if !self.go_to_memory(inner, stream, error) {
                        self.leave_hole(inner, bytes.len() as u64);
                        return;
                    }
                }
            }
        }
    }

    /// [`Self::take`] by reading and writing. Killed in between, what was read is lost.
    fn copy(&self, inner: &mut Inner, stream: Stream, pipe: BorrowedFd<'_>) -> io::Result<Taken> {
        let mut buffer = vec![0; MOVE_BYTES];
        Ok(match rustix::io::read(pipe, &mut buffer[..]) {
            Ok(0) => Taken::End,
            Ok(n) => {
                self.write(inner, stream, &buffer[..n]);
                Taken::Bytes(n)
            }
            Err(Errno::AGAIN) => Taken::Nothing,
            Err(errno) => return Err(errno.into()),
        })
    }

    /// Nothing can hold the output: it is read and counted, so that the agent goes on.
    fn discard(&self, inner: &mut Inner, pipe: BorrowedFd<'_>) -> io::Result<Taken> {
        let mut buffer = vec![0; MOVE_BYTES];
        Ok(match rustix::io::read(pipe, &mut buffer[..]) {
            Ok(0) => Taken::End,
            Ok(n) => {
                self.leave_hole(inner, n as u64);
                Taken::Bytes(n)
            }
            Err(Errno::AGAIN) => Taken::Nothing,
            Err(errno) => return Err(errno.into()),
        })
    }

    /// Bytes that are nowhere: the next segment begins after them.
    fn leave_hole(&self, inner: &mut Inner, bytes: u64) {
        let after = inner.end() + bytes;
        match (Segment::in_memory(after), inner.growing()) {
            (_, growing) if growing.is_memory() && growing.len == 0 => growing.base = after,
            (Ok(next), growing) => {
                growing.finish();
                inner.segments.push_back(next);
            }
            (Err(error), _) => tracing::debug!("the hole has no place in the log: {error}"),
        }
        self.state.send_modify(|state| state.dropped_bytes += bytes);
    }

    fn publish(&self, inner: &Inner) {
        let (start, end) = (inner.start(), inner.end());
        self.state.send_if_modified(|state| {
            let changed = (state.start, state.end) != (start, end);
            (state.start, state.end) = (start, end);
            changed
        });
    }
}

impl Inner {
    fn growing(&mut self) -> &mut Segment {
        self.segments
            .back_mut()
            .expect("a log that is written to has a segment")
    }

    fn start(&self) -> u64 {
        self.segments.front().map_or(0, |first| first.base)
    }

    fn end(&self) -> u64 {
        self.segments.back().map_or(0, Segment::end)
    }
}

/// Writes a segment that is in memory as one that grows on the disk.
fn to_disk(stem: &Stem, segment: &Segment) -> io::Result<Segment> {
    let mut whole = Segment::create(stem, segment.base)?;
    let memory = segment.open().expect("what is in memory is open");
    for mark in &memory.marks {
        whole.mark(*mark)?;
    }
    let mut bytes = vec![0; usize::try_from(segment.len).unwrap_or(usize::MAX)];
    memory.file.read_exact_at(&mut bytes, 0)?;
    let disk = whole.open().expect("just created");
    disk.file.write_all_at(&bytes, 0)?;
    whole.len = segment.len;
    Ok(whole)
}

fn finished_segments(stem: &Stem, path: &Path) -> Result<VecDeque<Segment>, LogError> {
    let found = stem.segments().map_err(file_error("read", path))?;
    Ok(found
        .into_iter()
        .map(|(base, len)| Segment::finished(stem, base, len))
        .collect())
}

fn file_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::File { verb, path, source }
}

#[cfg(test)]
mod tests;
