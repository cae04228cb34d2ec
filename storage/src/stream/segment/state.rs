//! What the writer and the reader know together of a stream: its segments, what is settled, what is wrong.
//!
//! The writer changes it after what it says is on the disk; the reader looks. Locks are held for a few lines, never over I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Write as _,
    ops::Range,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agentd_segment::{BadBytes, Index, SegmentHeader};

use crate::stream::{
    Damage, Settle, Settled, StreamError, StreamId, StreamName, StreamSpec, StreamStats,
};

/// One file of a stream.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    live: Mutex<Live>,
}

/// What of a segment changes.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Behind the last byte that is on the disk.
    pub(super) end: u64,
    /// Size of the file.
    pub(super) size: u64,
    /// Behind the last record of data; `None` of a segment from before the start, which ends where the next one begins.
    pub(super) next: Option<u64>,
    /// `None`: not read yet.
    pub(super) index: Option<Index>,
    pub(super) damaged: Vec<BadBytes>,
}

impl Segment {
    pub(super) fn new(number: u64, path: PathBuf, header: SegmentHeader, live: Live) -> Self {
        Self {
            number,
            path,
            header,
            live: Mutex::new(live),
        }
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        guard(&self.live)
    }
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) name: StreamName,
    pub(super) folder: PathBuf,
    state: Mutex<State>,
}

/// What of a stream changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) spec: StreamSpec,
    /// Oldest first. The last one may be written to.
    pub(super) segments: VecDeque<Arc<Segment>>,
    pub(super) settled: Settled,
    /// Of records that are not settled; never 0.
    pub(super) marks: BTreeMap<u64, u8>,
    pub(super) next: u64,
    /// No record is younger.
    pub(super) last_at_ns: u64,
    pub(super) damaged: Vec<Damage>,
    pub(super) trouble: Option<String>,
}

impl State {
    /// Of a stream in which nothing is.
    pub(super) fn new(spec: StreamSpec) -> Self {
        Self {
            spec,
            segments: VecDeque::new(),
            settled: Settled::default(),
            marks: BTreeMap::new(),
            next: 0,
            last_at_ns: 0,
            damaged: Vec::new(),
            trouble: None,
        }
    }

    /// Takes note of what became of records that are there.
    pub(super) fn settle(&mut self, range: Range<u64>, how: Settle) {
        match how {
            Settle::Done => {
                let marked: Vec<u64> = self.marks.range(range.clone()).map(|it| *it.0).collect();
                for offset in marked {
                    self.marks.remove(&offset);
                }
                self.settled.insert(range);
            }
            Settle::Mark(mark) => {
                for offset in range.filter(|it| !self.settled.contains(*it)) {
                    if mark == 0 {
                        self.marks.remove(&offset);
                    } else {
                        self.marks.insert(offset, mark);
                    }
                }
            }
        }
    }

    /// The oldest offset that is kept.
    pub(super) fn first(&self) -> u64 {
        self.segments
            .front()
            .map_or(self.next, |segment| segment.header.base)
    }
}

impl Stream {
    pub(super) fn new(id: StreamId, name: StreamName, folder: PathBuf, state: State) -> Self {
        Self {
            id,
            name,
            folder,
            state: Mutex::new(state),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        guard(&self.state)
    }

    /// Takes note of lost records, once, and puts what stands in their place aside for whoever wants to look into it.
    pub(super) fn damage(&self, segment: &Segment, bad: &BadBytes, bytes: &[u8]) {
        let damage = Damage {
            offsets: bad.offsets.clone(),
            place: format!(
                "{}, bytes {} to {}",
                segment.path.display(),
                bad.positions.start,
                bad.positions.end
            ),
            why: bad.why.to_owned(),
        };
        {
            let mut state = self.state();
            let same = |it: &Damage| it.place == damage.place;
            if state.damaged.iter().any(same) {
                return;
            }
            state.damaged.push(damage);
        }
        self.put_aside(segment, bad, bytes);
    }

    /// Copies bad bytes to a file of their own; only for people, so a failure (no room) takes nothing away.
    pub(super) fn put_aside(&self, segment: &Segment, bad: &BadBytes, bytes: &[u8]) {
        let name = format!("{:010}-{}.bad", segment.number, bad.positions.start);
        let file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.folder.join(name));
        if let Ok(mut file) = file {
            file.write_all(bytes).unwrap_or_default();
        }
    }

    pub(super) fn stats(&self) -> StreamStats {
        let state = self.state();
        let first = state.first();
        StreamStats {
            id: self.id,
            name: self.name.clone(),
            spec: state.spec.clone(),
            first,
            next: state.next,
            unsettled: state.settled.missing(first..state.next),
            disk_bytes: state.segments.iter().map(|it| it.live().size).sum(),
            damaged: state.damaged.clone(),
            trouble: state.trouble.clone(),
        }
    }
}

/// All streams of a store.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<BTreeMap<StreamId, Arc<Stream>>>);

impl Streams {
    pub(super) fn get(&self, id: StreamId) -> Result<Arc<Stream>, StreamError> {
        let found = guard(&self.0).get(&id).cloned();
        found.ok_or(StreamError::Unknown { id })
    }

    pub(super) fn find(&self, name: &StreamName) -> Option<Arc<Stream>> {
        let all = guard(&self.0);
        all.values().find(|stream| stream.name == *name).cloned()
    }

    pub(super) fn insert(&self, stream: Arc<Stream>) {
        guard(&self.0).insert(stream.id, stream);
    }

    pub(super) fn remove(&self, id: StreamId) {
        guard(&self.0).remove(&id);
    }

    pub(super) fn stats(&self) -> Vec<StreamStats> {
        let all: Vec<_> = guard(&self.0).values().cloned().collect();
        let mut stats: Vec<_> = all.iter().map(|stream| stream.stats()).collect();
        stats.sort_by(|a, b| a.name.cmp(&b.name));
        stats
    }
}

/// A thread that panicked holding one of these locks has left nothing half changed.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
