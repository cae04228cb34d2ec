//! How bytes get to the disk: several writes, each followed by its sync, carried out together.
//!
//! [`Disk`] owns the memory that is written from (aligned for direct I/O) and is used by the
//! writer's thread alone. Writes to several files go side by side through a [`Ring`] (io_uring), if
//! there is one; a single one takes one `pwritev2` with `RWF_DSYNC`, unless the ring is quicker by
//! far here and now ([`Pace`]). It says which it has and why; all keep the same promise: a write
//! that is told to be done is on the disk, and nothing of the memory is in use any more.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    time::Instant,
};

use agentd_segment::BLOCK;
use rustix::{
    fs::OFlags,
    io::{Errno, ReadWriteFlags},
};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use super::{
    pace::{Pace, Way},
    ring::Ring,
};

/// Bytes of one commit, of all streams together.
pub(super) const POOL: usize = 4 << 20;

/// One block, aligned as direct I/O wants it.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

/// Aligned memory that never moves.
pub(super) struct Pool(Box<[Block]>);

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} blocks)", self.0.len())
    }
}

impl Pool {
    pub(super) fn new(bytes: usize) -> Self {
        Self(vec![Block::new_zeroed(); bytes.div_ceil(BLOCK)].into_boxed_slice())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}

/// Part of the pool that goes to a place of a file. All three numbers are multiples of [`BLOCK`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Write<'a> {
    pub(super) file: BorrowedFd<'a>,
    /// Tells the file from others for as long as it is open.
    pub(super) key: u64,
    pub(super) position: u64,
    pub(super) start: usize,
    pub(super) len: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Disk {
    pool: Pool,
    ring: Result<Ring, String>,
    /// `None`: single writes go through the ring too.
    pace: Option<Pace>,
}

impl Disk {
    /// Makes a ring if the host allows it. Before the process confines itself: making one is a system call that it has no
    /// need of later.
    pub fn probe() -> Self {
        let pool = Pool::new(POOL);
        let ring = Ring::new(&pool);
        Self {
            pool,
            ring,
            pace: Some(Pace::default()),
        }
    }

    /// As [`Self::probe`]; the ring is taken for every write.
    #[cfg(test)]
    pub(super) fn ring_alone() -> Self {
        Self {
            pace: None,
            ..Self::probe()
        }
    }

    /// Without io_uring, and why: what is said in the log.
    pub fn plain(why: impl Into<String>) -> Self {
        Self {
            pool: Pool::new(POOL),
            ring: Err(why.into()),
            pace: None,
        }
    }

    /// Whether it writes through io_uring: then `io_uring_enter` must stay allowed.
    pub fn has_ring(&self) -> bool {
        self.ring.is_ok()
    }

    /// How it writes.
    pub fn describe(&self) -> String {
        match &self.ring {
            Ok(ring) => format!("{}; RWF_DSYNC where that is quicker", ring.describe()),
            Err(why) => format!("RWF_DSYNC ({why})"),
        }
    }

    pub(super) fn pool(&mut self) -> &mut [u8] {
        self.pool.bytes_mut()
    }

    /// Writes all of `writes`, and syncs each file; one outcome each, in order.
    pub(super) fn commit(&mut self, writes: &[Write<'_>]) -> Vec<Result<(), DiskError>> {
        let timed = match &mut self.pace {
            Some(pace) if writes.len() == 1 && self.ring.is_ok() => {
                Some((pace.choose(), Instant::now()))
            }
            _ => None,
        };
        let mut outcomes = match &mut self.ring {
            Ok(ring) if !matches!(timed, Some((Way::Call, _))) => ring.commit(&self.pool, writes),
            _ => writes.iter().map(|_| None).collect(),
        };
        if let Ok(ring) = &self.ring
            && let Some(why) = ring.broken()
        {
            let why = format!("io_uring failed: {why}");
            let mut pool = Pool::new(POOL);
            pool.bytes_mut().copy_from_slice(self.pool.bytes());
            // The kernel may go on reading from the old one for ever.
            std::mem::forget(std::mem::replace(&mut self.pool, pool));
            std::mem::forget(std::mem::replace(&mut self.ring, Err(why)));
        }
        // What the ring did not carry through is done the plain way, which also tells what is wrong.
        for (outcome, write) in outcomes.iter_mut().zip(writes) {
            if outcome.is_none() {
                *outcome = Some(self.plainly(write));
            }
        }
        if let (Some((way, began)), Some(pace)) = (timed, &mut self.pace) {
            pace.note(way, began.elapsed());
        }
        outcomes.into_iter().flatten().collect()
    }

    fn plainly(&self, write: &Write<'_>) -> Result<(), DiskError> {
        let bytes = &self.pool.bytes()[write.start..write.start + write.len];
        write_durably(write.file, bytes, write.position).map_err(DiskError::of("pwritev2"))
    }

    /// Lets go of a file that will not be written any more.
    pub(super) fn forget(&mut self, key: u64) {
        if let Ok(ring) = &mut self.ring {
            ring.forget(key);
        }
    }
}

/// A write or sync that failed.
#[derive(Debug)]
pub(super) struct DiskError {
    pub(super) call: &'static str,
    pub(super) source: io::Error,
}

impl DiskError {
    pub(super) fn of(call: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self { call, source }
    }
}

/// Writes all of `bytes`; they are on the disk when this returns. One call: the kernel needs no second look at the file.
fn write_durably(file: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwritev2(file, &[IoSlice::new(bytes)], at, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

pub(super) fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// What a segment is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Reading,
    Writing,
}

/// Opens a segment for direct I/O where its file system has that.
pub(super) fn open(path: &Path, purpose: For) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(purpose == For::Writing);
    let file = options.open(path)?;
    let flags = rustix::fs::fcntl_getfl(&file)?;
    match rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT) {
        // A file system without it says so here, and is used through the page cache.
        Ok(()) | Err(Errno::INVAL) => Ok(file),
        Err(errno) => Err(errno.into()),
    }
}

/// Memory to read into, aligned for direct I/O; kept for the next read.
#[derive(Debug)]
pub(super) struct ReadBuffer(Pool);

impl Default for ReadBuffer {
    fn default() -> Self {
        Self(Pool::new(0))
    }
}

impl ReadBuffer {
    /// The bytes of `file` from `position` on, `len` of them or as many as there are.
    pub(super) fn read(&mut self, file: &File, position: u64, len: usize) -> io::Result<&[u8]> {
        let block = BLOCK as u64;
        let start = position / block * block;
        // Never more than a segment.
        let lead = usize::try_from(position - start).unwrap_or(0);
        let want = (lead + len).next_multiple_of(BLOCK);
        if self.0.bytes().len() < want {
            self.0 = Pool::new(want);
        }
        let buffer = &mut self.0.bytes_mut()[..want];
        let mut filled = 0;
        while filled < want {
            match rustix::io::pread(file.as_fd(), &mut buffer[filled..], start + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            // Behind a read that does not end with a block there is only the end of the file.
            if filled % BLOCK != 0 {
                break;
            }
        }
        let end = filled.min(lead + len);
        Ok(&self.0.bytes()[lead.min(end)..end])
    }
}
