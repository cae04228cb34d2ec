//! The reading thread: replay by offset or time, and what is still unsettled.
//!
//! It reads only what the writer has told to be on the disk, through direct I/O where the writer uses that, so that it
//! never meets a page that is older than the disk. A record that can't be read is named in the answer, and reading goes on
//! behind it. Ends when every handle of the store has gone.

use std::{
    fs::File,
    io,
    sync::{Arc, mpsc},
};

use agentd_segment::{BLOCK, BadBytes, HEADER, Kind, Parsed, RecordHeader, Standing, parse, scan};

use super::{
    disk::{self, ReadBuffer},
    folder::read_error,
    recover::load,
    state::{Segment, Stream},
};
use crate::stream::{
    Damage, Done, ReadFrom, ReadLimit, Records, StoredRecord, StreamError, compress::expand,
};

/// Bytes read at once.
const WINDOW: usize = 256 * 1024;

/// What is to be read.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    All(ReadFrom),
    Unsettled(u64),
}

/// A question to the reading thread.
pub(super) struct Question {
    pub(super) stream: Arc<Stream>,
    pub(super) what: What,
    pub(super) limit: ReadLimit,
    pub(super) done: Done<Records>,
}

pub(super) fn run(questions: &mpsc::Receiver<Question>) {
    let mut buffer = ReadBuffer::default();
    for question in questions {
        let answer = read(&question, &mut buffer);
        (question.done)(answer);
    }
}

fn read(question: &Question, buffer: &mut ReadBuffer) -> Result<Records, StreamError> {
    // A segment that retention took while it was looked for is not there any more: then the oldest is another one.
    loop {
        match Reading::of(question).run(buffer) {
            Err(StreamError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            answer => return answer,
        }
    }
}

struct Reading<'a> {
    stream: &'a Stream,
    segments: Vec<Arc<Segment>>,
    what: What,
    limit: ReadLimit,
    /// The next offset that is wanted.
    at: u64,
    not_before_ns: u64,
    bytes: usize,
    records: Records,
}

impl<'a> Reading<'a> {
    fn of(question: &'a Question) -> Self {
        let state = question.stream.state();
        let first = state.first();
        let (at, not_before_ns) = match question.what {
            What::All(ReadFrom::Offset(offset)) => (offset.max(first), 0),
            What::All(ReadFrom::Time(at_ns)) => (first, at_ns),
            What::Unsettled(from) => (from.max(first).max(state.settled.cursor()), 0),
        };
        Self {
            stream: &question.stream,
            segments: state.segments.iter().cloned().collect(),
            what: question.what,
            limit: question.limit,
            at,
            not_before_ns,
            bytes: 0,
            records: Records {
                next: at,
                end: state.next,
                ..Records::default()
            },
        }
    }

    fn full(&self) -> bool {
        let count = self.records.records.len();
        count > 0 && (count >= self.limit.records || self.bytes >= self.limit.bytes)
    }

    fn run(mut self, buffer: &mut ReadBuffer) -> Result<Records, StreamError> {
        let segments = std::mem::take(&mut self.segments);
        // Records in a segment are no younger than what the next one's header says.
        let from_time = segments
            .windows(2)
            .position(|pair| pair[1].header.at_ns >= self.not_before_ns)
            .unwrap_or(segments.len().saturating_sub(1));
        let from_offset = segments
            .partition_point(|segment| segment.header.base <= self.at)
            .saturating_sub(1);
        for segment in segments.iter().skip(from_time.max(from_offset)) {
            if self.full() {
                break;
            }
            self.at = self.at.max(segment.header.base);
            self.segment(segment, buffer)?;
        }
        // What the stream says is its end is not behind what was read of it.
        self.records.next = self.at.min(self.records.end);
        Ok(self.records)
    }

    fn segment(&mut self, segment: &Segment, buffer: &mut ReadBuffer) -> Result<(), StreamError> {
        let (end, next, start) = {
            let live = segment.live();
            let next = live.next.unwrap_or(segment.header.base);
            let index = live.index.as_ref();
            let entry = index.and_then(|index| match self.what {
                What::All(ReadFrom::Time(at_ns)) => index.before_time(at_ns),
                _ => index.before_offset(self.at),
            });
            let start = entry.map_or((BLOCK as u64, segment.header.base), |entry| {
                (entry.position, entry.offset)
            });
            (live.end, next.min(self.records.end), start)
        };
        if self.at >= next {
            return Ok(());
        }
        if segment.live().index.is_none() {
            // Not read since the start: now it is, once, and where its records are is known from then on.
            self.look_over(segment, buffer)?;
            return self.segment(segment, buffer);
        }
        let path = &segment.path;
        let file = disk::open(path, disk::For::Reading).map_err(read_error(path, "open"))?;
        let (mut position, mut offset) = start;
        let mut window = WINDOW;
        while offset < next && !self.full() {
            let want = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
            let asked = want.min(window);
            let bytes = buffer
                .read(&file, position, asked)
                .map_err(read_error(path, "read"))?;
            // Nothing that counts is behind it.
            let whole = asked == want || bytes.len() < asked;
            let (used, stop) = self.window(segment.header.nonce, bytes, &mut offset, next);
            position += used as u64;
            match stop {
                Stop::Enough => {}
                // The window ends in it: go on with one that holds it.
                Stop::Short(need) if !whole => window = window.max(need.max(WINDOW)),
                Stop::Short(_) | Stop::Bad => {
                    let bad = self.lost(segment, &file, position, offset, buffer)?;
                    if !bad.offsets.is_empty() {
                        self.records.damaged.push(Damage {
                            offsets: bad.offsets.clone(),
                            place: format!("{}, byte {}", path.display(), bad.positions.start),
                            why: bad.why.to_owned(),
                        });
                    }
                    (position, offset) = (bad.positions.end as u64, bad.offsets.end);
                    self.at = self.at.max(offset);
                }
            }
        }
        Ok(())
    }

    /// Takes records out of a window; how much of it that was, and why no more.
    fn window(&mut self, nonce: u32, bytes: &[u8], offset: &mut u64, next: u64) -> (usize, Stop) {
        let mut used = 0;
        while *offset < next && !self.full() {
            let here = bytes.get(used..).unwrap_or_default();
            let (header, payload, space) = match parse(nonce, here) {
                Parsed::Record(header, payload, space) => (header, payload, space),
                Parsed::Short(need) => return (used, Stop::Short(need)),
                Parsed::Blank if here.len() < HEADER => {
                    return (used, Stop::Short(HEADER));
                }
                Parsed::Blank | Parsed::Bad(_) => return (used, Stop::Bad),
            };
            if header.kind == Kind::Data {
                if header.offset != *offset {
                    return (used, Stop::Bad);
                }
                self.record(&header, payload);
                *offset += 1;
            }
            used += space;
        }
        (used, Stop::Enough)
    }

    fn record(&mut self, header: &RecordHeader, payload: &[u8]) {
        let (settled, mark) = {
            let state = self.stream.state();
            let mark = state.marks.get(&header.offset).copied();
            (state.settled.contains(header.offset), mark.unwrap_or(0))
        };
        let unwanted = header.offset < self.at
            || header.at_ns < self.not_before_ns
            || (settled && matches!(self.what, What::Unsettled(_)));
        self.at = self.at.max(header.offset + 1);
        if unwanted {
            return;
        }
        match expand(header.compression, header.raw_len, payload) {
            Ok(payload) => {
                self.bytes += payload.len();
                self.records.records.push(StoredRecord {
                    offset: header.offset,
                    at_ns: header.at_ns,
                    mark,
                    payload,
                });
            }
            // Its check sum is right, so it was written like this.
            Err(why) => self.records.damaged.push(Damage {
                offsets: header.offset..header.offset + 1,
                place: format!("{}", self.stream.folder.display()),
                why,
            }),
        }
    }

    /// What is known of the bad place at `position`, where the record `offset` should be.
    fn lost(
        &self,
        segment: &Segment,
        file: &File,
        position: u64,
        offset: u64,
        buffer: &mut ReadBuffer,
    ) -> Result<BadBytes, StreamError> {
        self.look_over(segment, buffer)?;
        let live = segment.live();
        let at = usize::try_from(position).unwrap_or(usize::MAX);
        let known = live.damaged.iter().find(|bad| {
            bad.positions.contains(&at) || (bad.positions.is_empty() && bad.positions.start == at)
        });
        let next = live.next.unwrap_or(offset);
        let rest = BadBytes {
            positions: at..usize::try_from(live.end).unwrap_or(at).max(at),
            offsets: offset..next.max(offset),
            why: "what was written is not there any more",
        };
        let bad = known.cloned().unwrap_or(rest);
        drop(live);
        let len = bad.positions.len();
        let bytes = buffer.read(file, bad.positions.start as u64, len);
        let bytes = bytes.map_err(read_error(&segment.path, "read"))?;
        self.stream.damage(segment, &bad, bytes);
        Ok(bad)
    }

    /// Reads a whole segment, and keeps where its records are and what of it is bad.
    fn look_over(&self, segment: &Segment, buffer: &mut ReadBuffer) -> Result<(), StreamError> {
        let (end, next) = {
            let live = segment.live();
            (live.end, live.next.unwrap_or(segment.header.base))
        };
        let bytes = load(segment, end, buffer)?;
        let scanned = scan(&segment.header, bytes, Standing::Sealed { next });
        let mut live = segment.live();
        // The writer notes by itself where its records are.
        live.index.get_or_insert(scanned.index);
        live.damaged = scanned.damaged;
        Ok(())
    }
}

enum Stop {
    Enough,
    Short(usize),
    Bad,
}
