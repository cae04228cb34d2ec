//! A reader's place in a log.
//!
//! Reads whatever is there at its offset, knows the stream it came from, and learns of gaps. Reading is `pread` from the
//! page cache and disturbs nobody. A cursor that may not miss anything holds the log back: see [`OutputLog::room`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::segment::{self, Mark, Place, Run, Segment, run_at};
use super::{LogState, OutputLog};
use crate::agents::stdio::Stream;

/// How much is read at once when lines are counted.
const BACKWARD_BYTES: u64 = 64 * 1024;

/// What a cursor found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes of one stream are in the buffer.
    Bytes { stream: Stream, len: usize },
    /// So many bytes are not kept any more; the cursor stands behind them.
    Gap { bytes: u64 },
    /// Nothing more at present.
    Nothing,
}

/// A place in a log, and the file it is in.
#[derive(Debug)]
pub struct Cursor {
    log: Arc<OutputLog>,
    offset: u64,
    /// The segment of the last read, if it has finished: those that grow are looked up each time.
    finished: Option<Finished>,
    /// Its number among the holders.
    holds: Option<u64>,
}

#[derive(Debug)]
struct Finished {
    base: u64,
    end: u64,
    file: Arc<File>,
    marks: Vec<Mark>,
}

/// Where the byte at an offset is.
enum Located {
    Here {
        file: Arc<File>,
        base: u64,
        run: Run,
    },
    /// On the disk, in a segment that is not open.
    OnDisk {
        path: PathBuf,
        base: u64,
        end: u64,
    },
    Gap(u64),
    End,
}

impl Cursor {
    /// A reader who may miss what is removed before it is read.
    pub fn new(log: &Arc<OutputLog>, offset: u64) -> Self {
        Self {
            log: Arc::clone(log),
            offset,
            finished: None,
            holds: None,
        }
    }

    /// A reader for whom the log waits.
    pub fn lossless(log: &Arc<OutputLog>, offset: u64) -> Self {
        let mut inner = log.inner();
        let number = inner.next_holder;
        inner.next_holder += 1;
        inner.holders.push((number, offset));
        drop(inner);
        let mut cursor = Self::new(log, offset);
        cursor.holds = Some(number);
        cursor
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn log(&self) -> &Arc<OutputLog> {
        &self.log
    }

    /// Moves to `offset`.
    pub fn seek(&mut self, offset: u64) {
        self.offset = offset;
        self.report();
    }

    fn report(&self) {
        let Some(number) = self.holds else { return };
        let mut inner = self.log.inner();
        if let Some((_, at)) = inner.holders.iter_mut().find(|(n, _)| *n == number) {
            *at = self.offset;
        }
        drop(inner);
        self.log.progress.notify_waiters();
    }

    /// Reads what is at the cursor, of one stream and before offset `until`, and moves on.
    ///
    /// # Errors
    /// Of the disk.
    pub fn read(&mut self, buffer: &mut [u8], until: u64) -> io::Result<Piece> {
        if self.offset >= until || buffer.is_empty() {
            return Ok(Piece::Nothing);
        }
        let (file, base, run) = match self.locate()? {
            Located::Here { file, base, run } => (file, base, run),
            Located::Gap(next) => {
                let bytes = next - self.offset;
                self.seek(next);
                return Ok(Piece::Gap { bytes });
            }
            Located::End => return Ok(Piece::Nothing),
            Located::OnDisk { .. } => unreachable!("locate opens what it finds on the disk"),
        };
        let there = run.end.min(until) - self.offset;
        let want = usize::try_from(there).map_or(buffer.len(), |there| there.min(buffer.len()));
        let n = file.read_at(&mut buffer[..want], self.offset - base)?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a log file is shorter than it was",
            ));
        }
        self.seek(self.offset + n as u64);
        Ok(Piece::Bytes {
            stream: run.stream,
            len: n,
        })
    }

    fn locate(&mut self) -> io::Result<Located> {
        loop {
            if let Some(at) = &self.finished
                && (at.base..at.end).contains(&self.offset)
            {
                return Ok(Located::Here {
                    file: Arc::clone(&at.file),
                    base: at.base,
                    run: run_at(&at.marks, self.offset, at.end),
                });
            }
            self.finished = None;
            let found = find(&self.log.inner().segments, self.offset);
            let Located::OnDisk { path, base, end } = found else {
                return Ok(found);
            };
            match File::open(&path) {
                Ok(file) => {
                    self.finished = Some(Finished {
                        base,
                        end,
                        file: Arc::new(file),
                        marks: segment::read_marks(&path)?,
                    });
                }
                // Removed a moment ago by the limit: then the log says so too. Otherwise somebody else removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let now = find(&self.log.inner().segments, self.offset);
                    if matches!(now, Located::OnDisk { base: again, .. } if again == base) {
                        return Ok(Located::Gap(end));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let Some(number) = self.holds else { return };
        self.log.inner().holders.retain(|(n, _)| *n != number);
        self.log.progress.notify_waiters();
    }
}

fn find(segments: &std::collections::VecDeque<Segment>, offset: u64) -> Located {
    // The first one that ends behind the offset.
    let at = segments.partition_point(|segment| segment.end() <= offset);
    let Some(segment) = segments.get(at) else {
        return Located::End;
    };
    if segment.base > offset {
        return Located::Gap(segment.base);
    }
    match (segment.open(), &segment.place) {
        (Some(open), _) => Located::Here {
            file: Arc::clone(&open.file),
            base: segment.base,
            run: run_at(&open.marks, offset, segment.end()),
        },
        (None, Place::Disk(path, _)) => Located::OnDisk {
            path: path.clone(),
            base: segment.base,
            end: segment.end(),
        },
        (None, Place::Memory(_)) => unreachable!("what is in memory is open"),
    }
}

impl OutputLog {
    /// The offset at which the last `lines` lines before offset `end` begin; a gap counts as the beginning.
    ///
    /// # Errors
    /// Of the disk.
    pub fn last_lines(self: &Arc<Self>, lines: u64, end: u64) -> io::Result<u64> {
        let LogState { start, .. } = self.state();
        let mut wanted = lines;
        let mut until = end;
        let mut at_end = true;
        while until > start {
            if wanted == 0 {
                return Ok(until);
            }
            let from = until.saturating_sub(BACKWARD_BYTES).max(start);
            let (bytes, whole) = self.read_range(from, until)?;
            // The newline that ends the last line begins no other.
            let searched = match bytes.split_last() {
                Some((b'\n', before)) if at_end => before,
                _ => &bytes[..],
            };
            for at in memchr::memrchr_iter(b'\n', searched) {
                wanted -= 1;
                if wanted == 0 {
                    return Ok(until - bytes.len() as u64 + at as u64 + 1);
                }
            }
            if !whole {
                return Ok(until - bytes.len() as u64);
            }
            at_end = false;
            until = from;
        }
        Ok(until)
    }

    /// Where a new viewer's scroll-back begins: at most `bytes` before the end, and where nothing is cut in two: after a
    /// newline, or, of a program that paints its screen without any, at the first escape sequence, or at least at a
    /// whole character.
    ///
    /// # Errors
    /// Of the disk.
    pub fn scroll_back(self: &Arc<Self>, bytes: u64) -> io::Result<u64> {
        const ESC: u8 = 0x1b;
        let LogState { start, end, .. } = self.state();
        let from = end.saturating_sub(bytes).max(start);
        if from == 0 || from == end {
            return Ok(from);
        }
        // A byte before it shows whether `from` itself begins a line.
        let (tail, _) = self.read_range(from.saturating_sub(1).max(start), end)?;
        let begin = end - tail.len() as u64;
        let before = usize::from(begin < from);
        let within = |found: Option<usize>| found.map(|at| before + at);
        let skip = memchr::memchr(b'\n', &tail)
            .map(|newline| newline + 1)
            .or_else(|| within(memchr::memchr(ESC, &tail[before..])))
            .or_else(|| within(tail[before..].iter().position(|byte| byte & 0xc0 != 0x80)))
            .unwrap_or(tail.len());
        Ok(begin + skip as u64)
    }

    /// The first offset of which the index says that it was written at `at_ms` or later; the end if none was.
    ///
    /// # Errors
    /// Of the disk.
    pub fn since(self: &Arc<Self>, at_ms: u64) -> io::Result<u64> {
        let parts: Vec<_> = {
            let inner = self.inner();
            let marks_of = |segment: &Segment| match (segment.open(), &segment.place) {
                (Some(open), _) => Ok(open.marks.clone()),
                (None, Place::Disk(path, _)) => Err(path.clone()),
                (None, Place::Memory(_)) => unreachable!("what is in memory is open"),
            };
            inner.segments.iter().map(marks_of).collect()
        };
        for part in parts {
            let marks = match part {
                Ok(marks) => marks,
                Err(path) => segment::read_marks(&path)?,
            };
            if let Some(mark) = marks.iter().find(|mark| mark.at_ms >= at_ms) {
                return Ok(mark.offset);
            }
        }
        Ok(self.state().end)
    }

    /// What is kept just before `until`, from `from` on at the earliest; `false` if there is a gap in between.
    fn read_range(self: &Arc<Self>, from: u64, until: u64) -> io::Result<(Vec<u8>, bool)> {
        let mut cursor = Cursor::new(self, from);
        let mut bytes = vec![0; usize::try_from(until - from).unwrap_or(usize::MAX)];
        let (mut filled, mut whole) = (0, true);
        loop {
            match cursor.read(&mut bytes[filled..], until)? {
                Piece::Bytes { len, .. } => filled += len,
                Piece::Gap { .. } => (filled, whole) = (0, false),
                Piece::Nothing => break,
            }
        }
        bytes.truncate(filled);
        Ok((bytes, whole))
    }
}
