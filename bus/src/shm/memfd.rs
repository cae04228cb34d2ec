//! Memory that two processes share: sealed memfds.
//!
//! Its creator maps it writable, touches every page, and then seals it: `F_SEAL_FUTURE_WRITE` makes every
//! later mapping and every write through the descriptor fail, in every process, for ever;
//! `F_SEAL_SHRINK` and `F_SEAL_GROW` fix the size, so that a reader can't be hit by SIGBUS; and
//! `F_SEAL_SEAL` fixes the seals. Whoever receives such a descriptor asks the kernel for the seals
//! ([`check_sealed`], [`check_segment`]) and believes nothing else.
//!
//! Two sizes of it: a channel's rings and cursors ([`create`], [`open`]), and segments of arenas
//! ([`create_segment`], [`open_segment`]), which are larger, on larger pages, and placed.
//!
//! Any thread; no privilege. The mapping itself is in [`super::pages`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agentd_kernel::memory::HUGE_PAGE;
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::mm::ProtFlags;

pub use super::pages::{Mapping, PageKind};
use crate::arena::{SEGMENT_MAX, SEGMENT_MIN};
use crate::lane::{CAPACITY_MAX, Inline, data_words};

/// What must be sealed before a descriptor is worth anything to its receiver.
pub const REQUIRED_SEALS: SealFlags = SealFlags::FUTURE_WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// What must be sealed before memory may be read in place: nobody can write it, for ever.
pub const PAYLOAD_SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// The largest memory of a lane, bytes: bounds what a peer can make others map.
pub const BYTES_MAX: u64 = (data_words(CAPACITY_MAX, Inline::Wide) * 8) as u64;

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// Why shared memory could not be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum MemfdError {
    #[error("{call} for shared memory: {source}")]
    Call {
        call: &'static str,
        source: io::Error,
    },
    #[error("the descriptor is no sealable memory (F_GET_SEALS: {source})")]
    NotMemory { source: io::Error },
    #[error(
        "the memory lacks the seals {missing:?}, without which its giver could still change it"
    )]
    Unsealed { missing: SealFlags },
    #[error("the memory is {bytes} bytes; allowed are whole pages up to {BYTES_MAX}")]
    Size { bytes: u64 },
    #[error(
        "the segment is {bytes} bytes; allowed are whole pages of {page}, from {SEGMENT_MIN} to {SEGMENT_MAX} bytes"
    )]
    SegmentSize { bytes: u64, page: u64 },
    #[error("a sealed payload has 1 to {SEGMENT_MAX} bytes, not {bytes}")]
    PayloadSize { bytes: u64 },
    #[error(
        "only {allocated} of the segment's {bytes} bytes are there; its owner must touch all before it seals them"
    )]
    NotThere { allocated: u64, bytes: u64 },
}

pub(crate) fn failed(call: &'static str) -> impl Fn(rustix::io::Errno) -> MemfdError {
    move |errno| MemfdError::Call {
        call,
        source: errno.into(),
    }
}

/// Asks the kernel which of `wanted` are missing.
fn check_seals(fd: BorrowedFd<'_>, wanted: SealFlags) -> Result<(), MemfdError> {
    let seals = fcntl_get_seals(fd).map_err(|errno| MemfdError::NotMemory {
        source: errno.into(),
    })?;
    let missing = wanted.difference(seals);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(MemfdError::Unsealed { missing })
    }
}

/// Asks the kernel whether `fd` is channel memory that its giver can't pull from under the receiver, and
/// how many bytes it has.
pub fn check_sealed(fd: BorrowedFd<'_>) -> Result<u64, MemfdError> {
    check_seals(fd, REQUIRED_SEALS)?;
    // The size can't change after this: shrink and grow are sealed.
    let bytes = fstat(fd).map_err(failed("fstat"))?.st_size as u64;
    if bytes == 0 || bytes > BYTES_MAX || !bytes.is_multiple_of(4096) {
        return Err(MemfdError::Size { bytes });
    }
    Ok(bytes)
}

/// As [`check_sealed`], for a segment of an arena: also that all of it is there, or touching it would be
/// charged to whoever reads it first.
pub fn check_segment(fd: BorrowedFd<'_>) -> Result<u64, MemfdError> {
    check_seals(fd, REQUIRED_SEALS)?;
    let stat = fstat(fd).map_err(failed("fstat"))?;
    // The block size of hugetlbfs is its page size.
    let (bytes, page) = (stat.st_size as u64, stat.st_blksize as u64);
    if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&bytes) || !bytes.is_multiple_of(page.max(4096)) {
        return Err(MemfdError::SegmentSize { bytes, page });
    }
    check_allocated(stat.st_blocks as u64, bytes)?;
    Ok(bytes)
}

/// As [`check_segment`], for a payload that is read in place: nobody can write it any more.
pub fn check_payload(fd: BorrowedFd<'_>) -> Result<u64, MemfdError> {
    check_seals(fd, PAYLOAD_SEALS)?;
    let stat = fstat(fd).map_err(failed("fstat"))?;
    let bytes = stat.st_size as u64;
    if bytes == 0 || bytes > SEGMENT_MAX {
        return Err(MemfdError::PayloadSize { bytes });
    }
    check_allocated(stat.st_blocks as u64, bytes)?;
    Ok(bytes)
}

/// A memfd for a payload, to be filled and then sealed by [`seal_payload`].
pub(crate) fn payload(bytes: u64) -> Result<OwnedFd, MemfdError> {
    sized("agentd-payload", bytes, MemfdFlags::empty())
}

/// Refused by the kernel (EBUSY) while anybody has it mapped for writing.
pub(crate) fn seal_payload(fd: &OwnedFd) -> Result<(), MemfdError> {
    fcntl_add_seals(fd, PAYLOAD_SEALS).map_err(failed("F_ADD_SEALS"))
}

/// What is there can't be taken away again: holes need the right to write.
fn check_allocated(blocks: u64, bytes: u64) -> Result<(), MemfdError> {
    let allocated = blocks.saturating_mul(512);
    if allocated < bytes {
        return Err(MemfdError::NotThere { allocated, bytes });
    }
    Ok(())
}

/// An empty memfd of `bytes`, its size sealed.
fn sized(name: &str, bytes: u64, kind: MemfdFlags) -> Result<OwnedFd, MemfdError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind;
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 memfds can't be made non-executable.
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags),
        other => other,
    }
    .map_err(failed("memfd_create"))?;
    ftruncate(&fd, bytes).map_err(failed("ftruncate"))?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(failed("F_ADD_SEALS"))?;
    Ok(fd)
}

/// No process can map it writable from now on; mappings that are there stay.
fn seal_against_others(fd: &OwnedFd) -> Result<(), MemfdError> {
    fcntl_add_seals(fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL).map_err(failed("F_ADD_SEALS"))
}

/// Makes memory of `words` words (a whole number of pages), maps it writable here, and seals it against
/// everyone else. The descriptor is for the other side.
pub fn create(name: &str, words: usize) -> Result<(Mapping, OwnedFd), MemfdError> {
    let bytes = words as u64 * 8;
    if bytes == 0 || bytes > BYTES_MAX || !bytes.is_multiple_of(4096) {
        return Err(MemfdError::Size { bytes });
    }
    let fd = sized(name, bytes, MemfdFlags::empty())?;
    let mapping = Mapping::new(fd.as_fd(), bytes as usize, READ_WRITE)?;
    mapping.populate(READ_WRITE)?;
    seal_against_others(&fd)?;
    Ok((mapping, fd))
}

/// Maps memory that the other side made, for reading, after asking the kernel for its seals.
pub fn open(fd: BorrowedFd<'_>) -> Result<Mapping, MemfdError> {
    let bytes = check_sealed(fd)?;
    let mapping = Mapping::new(fd, bytes as usize, ProtFlags::READ)?;
    mapping.populate(ProtFlags::READ)?;
    Ok(mapping)
}

/// Makes a segment, all of it there, on pages no larger than `largest`, from `node` if one is named. Smaller
/// pages take the place of larger ones that can't be had: see [`Mapping::pages`] for what they are.
pub fn create_segment(
    bytes: u64,
    largest: PageKind,
    node: Option<u32>,
) -> Result<(Mapping, OwnedFd), MemfdError> {
    if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&bytes) || !bytes.is_multiple_of(4096) {
        return Err(MemfdError::SegmentSize { bytes, page: 4096 });
    }
    let in_huge_pages = bytes.is_multiple_of(HUGE_PAGE as u64);
    if largest == PageKind::Huge
        && in_huge_pages
        // Whatever the pool or the sandbox says against it, ordinary pages do.
        && let Ok(segment) = segment_of(bytes, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, node)
    {
        seal_against_others(&segment.1)?;
        return Ok(segment);
    }
    let (mapping, fd) = segment_of(bytes, MemfdFlags::empty(), node)?;
    if largest >= PageKind::Transparent && in_huge_pages {
        // Refused by older kernels, and where memory is in pieces: the pages stay as they are, which is seen.
        drop(mapping.collapse());
    }
    seal_against_others(&fd)?;
    Ok((mapping, fd))
}

fn segment_of(
    bytes: u64,
    kind: MemfdFlags,
    node: Option<u32>,
) -> Result<(Mapping, OwnedFd), MemfdError> {
    let fd = sized("agentd-arena", bytes, kind)?;
    let mapping = Mapping::new(fd.as_fd(), bytes as usize, READ_WRITE)?;
    if let Some(node) = node {
        // A preference: a kernel without NUMA, or a sandbox without the call, places the pages as it likes.
        drop(mapping.prefer_node(node));
    }
    mapping.populate(READ_WRITE)?;
    Ok((mapping, fd))
}

/// Maps a segment that the other side made, for reading, after asking the kernel for its seals.
pub fn open_segment(fd: BorrowedFd<'_>) -> Result<Mapping, MemfdError> {
    let bytes = check_segment(fd)?;
    let mapping = Mapping::new(fd, bytes as usize, ProtFlags::READ)?;
    mapping.populate(ProtFlags::READ)?;
    Ok(mapping)
}
