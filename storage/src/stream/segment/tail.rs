//! The end of a stream: the open segment, the block that the next record goes into, and how a new segment is begun.
//!
//! A segment gets its name only after its header and checkpoint are on the disk, so a file with a name has them. Its
//! space is reserved and, where the spare was ready in time, filled with zeros: then a commit changes no metadata of the
//! file system, and costs one write and one flush of the disk. Runs on the writer's thread; the filling, on one of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    ops::Range,
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use agentd_segment::{
    BLOCK, Index, Kind, RANGES, RecordHeader, SegmentHeader, merged, write_ranges,
};
use rustix::fs::FallocateFlags;

use super::{
    disk::{self, DiskError, Pool, write_all},
    folder,
    state::{Live, Segment, Stream},
};
use crate::stream::{Compression, Settled};

/// Tells open files apart.
static KEYS: AtomicU64 = AtomicU64::new(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) file: File,
    pub(super) key: u64,
    pub(super) segment: Arc<Segment>,
    /// Size of the file, and where the next record goes.
    pub(super) size: u64,
    pub(super) position: u64,
    /// What stands in the block of `position`.
    pub(super) block: Box<[u8; BLOCK]>,
    /// Number of the last commit.
    pub(super) group: u16,
    /// Time of the first and of the last record of data in it.
    pub(super) first_at_ns: Option<u64>,
    pub(super) last_at_ns: u64,
    /// A spare was asked for.
    pub(super) asked: bool,
}

/// What a new segment begins with.
pub(super) struct Begin<'a> {
    pub(super) stream: &'a Stream,
    pub(super) number: u64,
    pub(super) base: u64,
    pub(super) at_ns: u64,
    pub(super) settled: &'a Settled,
    pub(super) marks: &'a BTreeMap<u64, u8>,
    /// Size that it should have, and the least.
    pub(super) size: u64,
    pub(super) least: u64,
}

impl Tail {
    /// Begins a segment.
    pub(super) fn begin(begin: &Begin<'_>) -> Result<Self, DiskError> {
        let mut nonce = [0; 4];
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| DiskError::of("getrandom")(errno.into()))?;
        let header = SegmentHeader {
            stream: begin.stream.id.0,
            nonce: u32::from_le_bytes(nonce),
            base: begin.base,
            at_ns: begin.at_ns,
        };
        let (pool, used) = beginning(&header, begin);
        let least = begin.least + pool.bytes().len() as u64;
        // The spare is taken away first: the thread that makes spares may put the next one in its place at any time.
        let new = begin.stream.folder.join(folder::NEW);
        let spare = fs::rename(begin.stream.folder.join(folder::SPARE), &new);
        let size = match spare.and_then(|()| fs::metadata(&new)) {
            Ok(meta) if meta.len() >= least => meta.len(),
            _ => reserve(&new, begin.size.max(least), least)?,
        };
        let file = disk::open(&new, disk::For::Writing).map_err(DiskError::of("open"))?;
        write_all(file.as_fd(), pool.bytes(), 0).map_err(DiskError::of("pwrite"))?;
        file.sync_all().map_err(DiskError::of("fsync"))?;
        let path = folder::of_segment(&begin.stream.folder, begin.number);
        fs::rename(&new, &path).map_err(DiskError::of("rename"))?;
        folder::sync(&begin.stream.folder).map_err(DiskError::of("fsync"))?;

        let mut block = Box::new([0; BLOCK]);
        let within = used % BLOCK;
        block[..within].copy_from_slice(&pool.bytes()[used - within..used]);
        let live = Live {
            end: used as u64,
            size,
            next: Some(begin.base),
            index: Some(Index::default()),
            damaged: Vec::new(),
        };
        Ok(Self {
            file,
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            segment: Arc::new(Segment::new(begin.number, path, header, live)),
            size,
            position: used as u64,
            block,
            group: 0,
            first_at_ns: None,
            last_at_ns: begin.at_ns,
            asked: false,
        })
    }

    /// Gives back what was reserved and not used. What is left undone here the next start does.
    pub(super) fn seal(&self) {
        if self.file.set_len(self.position).is_ok() {
            let mut live = self.segment.live();
            live.size = self.position;
        }
    }
}

/// Header block, checkpoint, settled ranges and marks, and where they end.
fn beginning(header: &SegmentHeader, begin: &Begin<'_>) -> (Pool, usize) {
    let mut records = vec![(Kind::Checkpoint, 0, vec![0..begin.settled.cursor()])];
    let ranges: Vec<_> = begin.settled.ranges().collect();
    records.extend(
        ranges
            .chunks(RANGES)
            .map(|some| (Kind::Settled, 0, some.to_vec())),
    );
    for mark in begin.marks.values().copied().collect::<BTreeSet<u8>>() {
        let with = begin.marks.iter().filter(|it| *it.1 == mark);
        let with = merged(with.map(|it| *it.0..*it.0 + 1).collect());
        records.extend(
            with.chunks(RANGES)
                .map(|some| (Kind::Marked, mark, some.to_vec())),
        );
    }
    let space =
        |(_, _, ranges): &(Kind, u8, Vec<Range<u64>>)| RecordHeader::space(ranges.len() * 16);
    let mut pool = Pool::new(BLOCK + records.iter().map(space).sum::<usize>());
    let (block, rest) = pool.bytes_mut().split_at_mut(BLOCK);
    if let Some(block) = block.first_chunk_mut() {
        header.write(block);
    }
    let (mut payload, mut last, mut at) = (Vec::new(), 0, 0);
    for (kind, mark, ranges) in records {
        write_ranges(&ranges, &mut payload);
        let record = RecordHeader {
            kind,
            offset: header.base,
            at_ns: header.at_ns,
            compression: Compression::None,
            raw_len: u32::from(mark),
            group: 0,
            last: false,
        };
        last = at;
        at += record.write(header.nonce, &payload, &mut rest[at..]);
    }
    RecordHeader::mark_last(header.nonce, &mut rest[last..]);
    (pool, BLOCK + at)
}

/// Makes a file with room of its own, of `size` bytes or, where there is not so much, `least`.
fn reserve(path: &Path, size: u64, least: u64) -> Result<u64, DiskError> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(DiskError::of("open"))?;
    for size in [size, least.next_multiple_of(BLOCK as u64)] {
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => return Ok(size),
            // A file system that can't reserve: space is found as it is written.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                file.set_len(size).map_err(DiskError::of("ftruncate"))?;
                return Ok(size);
            }
            Err(rustix::io::Errno::NOSPC) => {}
            Err(errno) => return Err(DiskError::of("fallocate")(errno.into())),
        }
    }
    // Not even that: give back what was taken, so that somebody else can.
    fs::remove_file(path).unwrap_or_default();
    Err(DiskError::of("fallocate")(
        io::ErrorKind::StorageFull.into(),
    ))
}

/// A file to be filled with zeros, for the folder of a stream.
pub(super) struct Wanted {
    pub(super) folder: PathBuf,
    pub(super) size: u64,
}

/// The thread that makes spares. A spare that could not be made is missed by nobody: a segment then begins without.
pub(super) fn make_spares(wanted: &mpsc::Receiver<Wanted>) {
    let zeros = Pool::new(1 << 20);
    for Wanted { folder: of, size } in wanted {
        let part = of.join(folder::SPARE_PART);
        let made =
            fill(&part, size, &zeros).and_then(|()| fs::rename(&part, of.join(folder::SPARE)));
        if made.is_err() {
            fs::remove_file(&part).unwrap_or_default();
        }
    }
}

/// Makes a file of `size` bytes of zeros that are on the disk.
pub(super) fn fill(path: &Path, size: u64, zeros: &Pool) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut at = 0;
    while at < size {
        // No more than the zeros there are.
        let len = usize::try_from(size - at).unwrap_or(usize::MAX);
        let bytes = zeros.bytes();
        let bytes = &bytes[..len.min(bytes.len())];
        write_all(file.as_fd(), bytes, at)?;
        at += bytes.len() as u64;
    }
    file.sync_all()
}
