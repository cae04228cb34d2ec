//! The writing thread: takes what is asked, puts all of it that it finds into one commit, and answers after the sync.
//!
//! While one commit waits for the disk the next one gathers (group commit), of all streams together: one write and one sync for
//! each stream that has something, carried out side by side. Whatever was not a write, declaring and forgetting streams, has
//! its turn between two commits. What fails fails for the stream concerned: a full disk refuses and goes on being asked, a
//! broken one stops the stream until a restart.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    ops::Range,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender},
    },
};

use agentd_segment::{BLOCK, IndexEntry, Kind, RANGES, RecordHeader, merged, write_ranges};

use super::{
    Options,
    disk::{Disk, DiskError, POOL, Pool, Write},
    folder,
    state::{Segment, State, Stream, Streams},
    tail::{Begin, Tail, Wanted, fill},
};
use crate::stream::{
    Compression, Declared, Done, NewRecord, Settle, StreamError, StreamId, StreamKind, StreamName,
    StreamSpec, compress::compress,
};

/// What the writer is asked.
pub(super) enum Command {
    Declare(StreamName, StreamSpec, Done<Declared>),
    Drop(StreamId, Done<()>),
    Append(StreamId, Vec<NewRecord>, Done<u64>),
    Settle(StreamId, Vec<Range<u64>>, Settle, Done<()>),
    Retain(StreamId, u64, Done<u64>),
    Flush(Done<()>),
    Close,
}

/// Bytes of a segment that an append takes at most.
pub(super) fn space_of(records: &[NewRecord]) -> usize {
    let space = |record: &NewRecord| RecordHeader::space(record.payload.len());
    records.iter().map(space).sum()
}

/// Bytes of a segment that settling takes at most.
pub(super) fn space_to_settle(ranges: usize) -> usize {
    RecordHeader::space(ranges * 16) + ranges.div_ceil(RANGES) * RecordHeader::space(0)
}

impl Command {
    /// Bytes that wait with it.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Append(_, records, _) => space_of(records),
            Self::Settle(_, ranges, _, _) => space_to_settle(ranges.len()),
            _ => 0,
        }
    }
}

/// Offsets, what became of them, and who is told.
type Asked = (Vec<Range<u64>>, Settle, Done<()>);

/// What one stream wants of the next commit.
#[derive(Default)]
struct Wish {
    appends: Vec<(Vec<NewRecord>, Done<u64>)>,
    settles: Vec<Asked>,
    space: usize,
}

/// What waits for the next commit.
#[derive(Default)]
struct Group {
    wishes: BTreeMap<StreamId, Wish>,
    space: usize,
}

impl Group {
    /// Blocks that are begun and not filled, at the start and the end of each stream's part.
    const EDGES: usize = 2 * BLOCK;

    fn has_room(&self, stream: StreamId, space: usize) -> bool {
        let edges = if self.wishes.contains_key(&stream) {
            0
        } else {
            Self::EDGES
        };
        self.wishes.is_empty() || self.space + space + edges <= POOL
    }

    fn wish(&mut self, stream: StreamId, space: usize) -> &mut Wish {
        if !self.wishes.contains_key(&stream) {
            self.space += Self::EDGES;
        }
        self.space += space;
        let wish = self.wishes.entry(stream).or_default();
        wish.space += space;
        wish
    }
}

/// A stream's part of a commit, in the pool.
struct Part {
    stream: Arc<Stream>,
    start: usize,
    len: usize,
    /// Behind the last byte that counts.
    end: u64,
    group: u16,
    first: u64,
    next: u64,
    entries: Vec<IndexEntry>,
    first_at_ns: Option<u64>,
    last_at_ns: u64,
    settled: Vec<(Settle, Vec<Range<u64>>)>,
    appends: Vec<(u64, Done<u64>)>,
    settles: Vec<Done<()>>,
}

/// See the module.
pub(super) struct Writer {
    pub(super) root: PathBuf,
    pub(super) options: Options,
    pub(super) disk: Disk,
    pub(super) streams: Arc<Streams>,
    pub(super) last_id: u32,
    pub(super) spares: Sender<Wanted>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) tails: HashMap<StreamId, Tail>,
    /// Streams whose file may not say what was last written to it.
    pub(super) failed: HashMap<StreamId, StreamError>,
}

impl Writer {
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let mut group = Group::default();
        'open: while let Ok(command) = commands.recv() {
            let mut next = Some(command);
            while let Some(command) = next {
                let weight = command.weight();
                if weight > 0 {
                    self.waiting.fetch_sub(weight, Ordering::Relaxed);
                }
                if matches!(command, Command::Close) {
                    break 'open;
                }
                self.take(&mut group, command, weight);
                next = commands.try_recv().ok();
            }
            self.commit(&mut group);
        }
        self.commit(&mut group);
        self.close();
    }

    fn take(&mut self, group: &mut Group, command: Command, space: usize) {
        match command {
            Command::Append(stream, records, done) => {
                if !group.has_room(stream, space) {
                    self.commit(group);
                }
                group.wish(stream, space).appends.push((records, done));
            }
            Command::Settle(stream, ranges, how, done) => {
                if !group.has_room(stream, space) {
                    self.commit(group);
                }
                group.wish(stream, space).settles.push((ranges, how, done));
            }
            Command::Declare(name, spec, done) => {
                self.commit(group);
                done(self.declare(name, spec));
            }
            Command::Drop(stream, done) => {
                self.commit(group);
                done(self.drop_stream(stream));
            }
            Command::Retain(stream, now_ns, done) => {
                self.commit(group);
                done(self.retain(stream, now_ns));
            }
            Command::Flush(done) => {
                self.commit(group);
                done(Ok(()));
            }
            Command::Close => {}
        }
    }

    /// Writes everything in `group`, and answers.
    fn commit(&mut self, group: &mut Group) {
        if group.wishes.is_empty() {
            return;
        }
        let group = std::mem::take(group);
        let (mut parts, mut at) = (Vec::with_capacity(group.wishes.len()), 0);
        for (id, wish) in group.wishes {
            if let Some(part) = self.lay_out(id, wish, at) {
                at += part.len;
                parts.push(part);
            }
        }
        let writes: Vec<Write<'_>> = parts
            .iter()
            .filter_map(|part| {
                let tail = self.tails.get(&part.stream.id)?;
                let block = BLOCK as u64;
                Some(Write {
                    file: tail.file.as_fd(),
                    key: tail.key,
                    position: tail.position / block * block,
                    start: part.start,
                    len: part.len,
                })
            })
            .collect();
        let outcomes = self.disk.commit(&writes);
        drop(writes);
        for (part, outcome) in parts.into_iter().zip(outcomes) {
            self.settle_up(part, outcome);
        }
    }

    /// Puts a stream's records into the pool from `start` on; `None` if there is nothing to write (and all are answered).
    fn lay_out(&mut self, id: StreamId, wish: Wish, start: usize) -> Option<Part> {
        let (stream, ready) = match self.streams.get(id) {
            Ok(stream) => {
                let ready = self.make_ready(&stream, wish.space);
                (stream, ready)
            }
            Err(error) => {
                refuse(wish, &error);
                return None;
            }
        };
        if let Err(error) = ready {
            refuse(wish, &error);
            return None;
        }
        let (spec, first, added, settled) = {
            let state = stream.state();
            let added: usize = wish.appends.iter().map(|(records, _)| records.len()).sum();
            let settled = news(&state, state.next + added as u64, &wish.settles);
            (state.spec.clone(), state.next, added, settled)
        };
        let tail = self.tails.get(&id)?;
        let nonce = tail.segment.header.nonce;
        let within = usize::try_from(tail.position % BLOCK as u64).unwrap_or(0);
        let out = &mut self.disk.pool()[start..];
        out[..within].copy_from_slice(&tail.block[..within]);
        let mut part = Part {
            stream,
            start,
            len: 0,
            end: 0,
            group: tail.group.wrapping_add(1),
            first,
            next: first,
            entries: Vec::with_capacity(added),
            first_at_ns: tail.first_at_ns,
            last_at_ns: tail.last_at_ns,
            settled,
            appends: Vec::with_capacity(wish.appends.len()),
            settles: wish.settles.into_iter().map(|(_, _, done)| done).collect(),
        };
        let base = tail.position - within as u64;
        let (mut at, mut last) = (within, None);
        for (records, done) in wish.appends {
            part.appends.push((part.next, done));
            for record in &records {
                part.last_at_ns = part.last_at_ns.max(record.at_ns);
                part.first_at_ns.get_or_insert(part.last_at_ns);
                let (compression, smaller) = compress(&spec, &record.payload);
                let header = RecordHeader {
                    kind: Kind::Data,
                    offset: part.next,
                    at_ns: part.last_at_ns,
                    compression,
                    // Below `NewRecord::MAX`.
                    raw_len: u32::try_from(record.payload.len()).unwrap_or(u32::MAX),
                    group: part.group,
                    last: false,
                };
                part.entries.push(IndexEntry {
                    offset: part.next,
                    at_ns: part.last_at_ns,
                    position: base + at as u64,
                });
                last = Some(at);
                let payload = smaller.as_deref().unwrap_or(&record.payload);
                at += header.write(nonce, payload, &mut out[at..]);
                part.next += 1;
            }
        }
        let mut payload = Vec::new();
        for (how, ranges) in &part.settled {
            let (kind, mark) = match how {
                Settle::Done => (Kind::Settled, 0),
                Settle::Mark(mark) => (Kind::Marked, *mark),
            };
            for ranges in ranges.chunks(RANGES) {
                write_ranges(ranges, &mut payload);
                let header = RecordHeader {
                    kind,
                    offset: part.next,
                    at_ns: part.last_at_ns,
                    compression: Compression::None,
                    raw_len: u32::from(mark),
                    group: part.group,
                    last: false,
                };
                last = Some(at);
                at += header.write(nonce, &payload, &mut out[at..]);
            }
        }
        let Some(last) = last else {
            // All of it was settled before.
            part.settles.into_iter().for_each(|done| done(Ok(())));
            let first = part.first;
            part.appends
                .into_iter()
                .for_each(|(_, done)| done(Ok(first)));
            return None;
        };
        RecordHeader::mark_last(nonce, &mut out[last..]);
        part.len = at.next_multiple_of(BLOCK);
        part.end = base + at as u64;
        out[at..part.len].fill(0);
        Some(part)
    }

    /// What follows from the disk's answer.
    fn settle_up(&mut self, part: Part, outcome: Result<(), DiskError>) {
        let stream = part.stream;
        if let Err(error) = outcome {
            let path = self
                .tails
                .get(&stream.id)
                .map(|tail| tail.segment.path.clone());
            let error = StreamError::Write {
                name: stream.name.to_string(),
                path: path.unwrap_or_else(|| stream.folder.clone()),
                call: error.call,
                source: Arc::new(error.source),
            };
            stream.state().trouble = Some(error.to_string());
            self.failed.insert(stream.id, error.clone());
            part.settles
                .into_iter()
                .for_each(|done| done(Err(error.clone())));
            part.appends
                .into_iter()
                .for_each(|(_, done)| done(Err(error.clone())));
            return;
        }
        if let Some(tail) = self.tails.get_mut(&stream.id) {
            let within = usize::try_from(part.end % BLOCK as u64).unwrap_or(0);
            let end = part.start + part.len;
            let from = if within == 0 { end } else { end - BLOCK };
            tail.block[..within].copy_from_slice(&self.disk.pool()[from..from + within]);
            tail.position = part.end;
            tail.group = part.group;
            tail.first_at_ns = part.first_at_ns;
            tail.last_at_ns = part.last_at_ns;
            let mut live = tail.segment.live();
            live.end = part.end;
            live.next = Some(part.next);
            if let Some(index) = &mut live.index {
                part.entries.iter().for_each(|entry| index.note(*entry));
            }
        }
        let all_settled = {
            let mut state = stream.state();
            state.next = part.next;
            state.trouble = None;
            for (how, ranges) in part.settled {
                ranges
                    .into_iter()
                    .for_each(|range| state.settle(range, how));
            }
            stream.name.kind == StreamKind::Queue
                && state.segments.len() > 1
                && state.segments[1].header.base <= state.settled.cursor()
        };
        part.settles.into_iter().for_each(|done| done(Ok(())));
        part.appends
            .into_iter()
            .for_each(|(first, done)| done(Ok(first)));
        if all_settled {
            self.forget_front(&stream, |state| {
                state.segments[1].header.base <= state.settled.cursor()
            });
        }
        self.ask_for_spare(&stream);
    }

    /// Sees to it that the stream's tail has room for `space` bytes.
    fn make_ready(&mut self, stream: &Arc<Stream>, space: usize) -> Result<(), StreamError> {
        if let Some(error) = self.failed.get(&stream.id) {
            return Err(error.clone());
        }
        let need = (space + Group::EDGES) as u64;
        match self.tails.get(&stream.id) {
            Some(tail) if tail.position + need <= tail.size => Ok(()),
            _ => self.roll(stream, need),
        }
    }

    /// Ends the stream's segment and begins the next.
    fn roll(&mut self, stream: &Arc<Stream>, need: u64) -> Result<(), StreamError> {
        let (number, base, settled, marks, before) = {
            let state = stream.state();
            let newest = state.segments.back();
            let number = newest.map_or(1, |segment| segment.number + 1);
            let before = newest.map_or(0, |segment| segment.live().end);
            (
                number,
                state.next,
                state.settled.clone(),
                state.marks.clone(),
                before,
            )
        };
        let at_ns = match self.tails.get(&stream.id) {
            Some(tail) => tail.last_at_ns,
            None => stream.state().last_at_ns,
        };
        let size = (before * 2)
            .next_power_of_two()
            .clamp(self.options.segment_min, self.options.segment_max);
        if before == 0 && need <= size {
            // The first one: small, and quicker from its first record on.
            let spare = stream.folder.join(folder::SPARE);
            if fill(&spare, size, &Pool::new(1 << 18)).is_err() {
                fs::remove_file(&spare).unwrap_or_default();
            }
        }
        let begun = Tail::begin(&Begin {
            stream,
            number,
            base,
            at_ns,
            settled: &settled,
            marks: &marks,
            size,
            least: need,
        });
        let tail = begun.map_err(|error| self.explain(stream, error))?;
        stream.state().segments.push_back(tail.segment.clone());
        if let Some(old) = self.tails.insert(stream.id, tail) {
            self.disk.forget(old.key);
            old.seal();
        }
        Ok(())
    }

    /// A segment that could not be begun: a full disk is no reason to give up.
    fn explain(&self, stream: &Stream, error: DiskError) -> StreamError {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let error = if matches!(error.source.kind(), StorageFull | QuotaExceeded) {
            StreamError::Full {
                name: stream.name.to_string(),
                path: self.root.clone(),
            }
        } else {
            StreamError::Write {
                name: stream.name.to_string(),
                path: stream.folder.clone(),
                call: error.call,
                source: Arc::new(error.source),
            }
        };
        stream.state().trouble = Some(error.to_string());
        error
    }

    fn ask_for_spare(&mut self, stream: &Stream) {
        let Some(tail) = self.tails.get_mut(&stream.id) else {
            return;
        };
        if tail.asked || tail.position * 2 < tail.size {
            return;
        }
        tail.asked = true;
        let size = (tail.size * 2).clamp(self.options.segment_min, self.options.segment_max);
        let folder = stream.folder.clone();
        // The thread ends after this one does.
        self.spares
            .send(Wanted { folder, size })
            .unwrap_or_default();
    }

    fn declare(&mut self, name: StreamName, spec: StreamSpec) -> Result<Declared, StreamError> {
        name.check()?;
        let fault =
            |folder: &std::path::Path, error: std::io::Error| folder::open_error(folder, &error);
        if let Some(stream) = self.streams.find(&name) {
            if stream.state().spec != spec {
                folder::describe(&stream.folder, stream.id, &name, &spec)
                    .map_err(|error| fault(&stream.folder, error))?;
            }
            let mut state = stream.state();
            state.spec = spec;
            return Ok(Declared {
                id: stream.id,
                new: false,
                first: state.first(),
                next: state.next,
            });
        }
        let id = StreamId(self.last_id + 1);
        let folder = folder::make_stream(&self.root, id, &name, &spec)
            .map_err(|error| fault(&self.root, error))?;
        self.last_id = id.0;
        let state = State::new(spec);
        self.streams
            .insert(Arc::new(Stream::new(id, name, folder, state)));
        Ok(Declared {
            id,
            new: true,
            first: 0,
            next: 0,
        })
    }

    fn drop_stream(&mut self, id: StreamId) -> Result<(), StreamError> {
        self.streams.get(id)?;
        self.streams.remove(id);
        self.failed.remove(&id);
        if let Some(tail) = self.tails.remove(&id) {
            self.disk.forget(tail.key);
        }
        folder::remove_stream(&self.root, id)
            .map_err(|error| folder::open_error(&folder::of_stream(&self.root, id), &error))
    }

    fn retain(&mut self, id: StreamId, now_ns: u64) -> Result<u64, StreamError> {
        let stream = self.streams.get(id)?;
        let retention = stream.state().spec.retention;
        let mut gone = 0;
        if let Some(age) = retention.max_age {
            let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
            let before = now_ns.saturating_sub(age);
            let stale = |tail: &Tail| tail.first_at_ns.is_some_and(|at| at < before);
            if self.tails.get(&id).is_some_and(stale) {
                // What is in the open segment can go only when it is open no more.
                self.roll(&stream, 0)?;
            }
            gone += self.forget_front(&stream, |state| state.segments[1].header.at_ns < before);
        }
        if let Some(max) = retention.max_bytes {
            gone += self.forget_front(&stream, |state| {
                let used = |segment: &Arc<Segment>| segment.live().end - BLOCK as u64;
                let all: u64 = state.segments.iter().map(used).sum();
                all > max
            });
        }
        Ok(gone)
    }

    /// Removes segments from the front while `may` says so; never the newest. How many records went.
    fn forget_front(&mut self, stream: &Stream, may: impl Fn(&State) -> bool) -> u64 {
        let mut gone = 0;
        loop {
            let (path, records) = {
                let mut state = stream.state();
                if state.segments.len() < 2 || !may(&state) {
                    return gone;
                }
                let Some(old) = state.segments.pop_front() else {
                    return gone;
                };
                let first = state.first();
                state.settle(0..first, Settle::Done);
                (old.path.clone(), first - old.header.base)
            };
            // One that stays would come back with the next start, which is no more than late.
            if fs::remove_file(&path).is_ok() {
                gone += records;
            }
        }
    }

    /// Ends every open segment so that the next start finds it whole: with a commit behind the last one.
    fn close(&mut self) {
        let ids: Vec<StreamId> = self.tails.keys().copied().collect();
        for id in ids {
            let (Some(tail), Ok(stream)) = (self.tails.get(&id), self.streams.get(id)) else {
                continue;
            };
            if self.failed.contains_key(&id) {
                self.disk.forget(tail.key);
                continue;
            }
            let nonce = tail.segment.header.nonce;
            let within = usize::try_from(tail.position % BLOCK as u64).unwrap_or(0);
            let mut payload = Vec::new();
            let (offset, cursor) = {
                let state = stream.state();
                (state.next, state.settled.cursor())
            };
            write_ranges(&[0..cursor], &mut payload);
            let header = RecordHeader {
                kind: Kind::Checkpoint,
                offset,
                at_ns: tail.last_at_ns,
                compression: Compression::None,
                raw_len: 0,
                group: tail.group.wrapping_add(1),
                last: true,
            };
            let pool = &mut self.disk.pool()[..2 * BLOCK];
            pool.fill(0);
            pool[..within].copy_from_slice(&tail.block[..within]);
            let end = within + header.write(nonce, &payload, &mut pool[within..]);
            let position = tail.position - within as u64;
            let write = Write {
                file: tail.file.as_fd(),
                key: tail.key,
                position,
                start: 0,
                len: end.next_multiple_of(BLOCK),
            };
            // If it fails, the next start looks at the end of the segment with more suspicion; nothing is lost.
            if self.disk.commit(&[write]).iter().all(Result::is_ok) {
                tail.file.set_len(position + end as u64).unwrap_or_default();
            }
            self.disk.forget(tail.key);
        }
    }
}

/// What of `asked` says something new of records below `end`, in order, and in as few ranges as that allows.
fn news(state: &State, end: u64, asked: &[Asked]) -> Vec<(Settle, Vec<Range<u64>>)> {
    let mut news: Vec<(Settle, Vec<Range<u64>>)> = Vec::new();
    for (ranges, how, _) in asked {
        let below = ranges.iter().map(|range| range.start..range.end.min(end));
        let new = below.filter(|range| state.settled.missing(range.clone()) > 0);
        match news.last_mut() {
            Some((last, of)) if last == how => of.extend(new),
            _ => news.push((*how, new.collect())),
        }
    }
    for (_, ranges) in &mut news {
        *ranges = merged(std::mem::take(ranges));
    }
    news
}

fn refuse(wish: Wish, error: &StreamError) {
    for (_, done) in wish.appends {
        done(Err(error.clone()));
    }
    for (_, _, done) in wish.settles {
        done(Err(error.clone()));
    }
}
