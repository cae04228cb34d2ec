//! Lane memory that two processes share: a sealed memfd.
//!
//! Its creator maps it writable, touches every page, and then seals it: `F_SEAL_FUTURE_WRITE` makes every
//! later mapping and every write through the descriptor fail, in every process, for ever;
//! `F_SEAL_SHRINK` and `F_SEAL_GROW` fix the size, so that a reader can't be hit by SIGBUS; and
//! `F_SEAL_SEAL` fixes the seals. Whoever receives such a descriptor asks the kernel for the seals
//! ([`check_sealed`]) and believes nothing else.
//!
//! All unsafe code of the bus is in this file and in `futex`. Any thread; no privilege.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::atomics::AtomicU64;
use super::region::Words;
use crate::lane::{CAPACITY_MAX, data_words};

/// What must be sealed before a descriptor is worth anything to its receiver.
pub const REQUIRED_SEALS: SealFlags = SealFlags::FUTURE_WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// The largest memory of a lane, bytes: bounds what a peer can make others map.
pub const BYTES_MAX: u64 = (data_words(CAPACITY_MAX) * 8) as u64;

/// Why lane memory could not be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum MemfdError {
    #[error("{call} for lane memory: {source}")]
    Call {
        call: &'static str,
        source: io::Error,
    },
    #[error("the descriptor is no sealable memory (F_GET_SEALS: {source})")]
    NotMemory { source: io::Error },
    #[error(
        "the memory lacks the seals {missing:?}; future-write, shrink, grow and seal are required"
    )]
    Unsealed { missing: SealFlags },
    #[error("the memory is {bytes} bytes; allowed are whole pages up to {BYTES_MAX}")]
    Size { bytes: u64 },
}

fn failed(call: &'static str) -> impl Fn(rustix::io::Errno) -> MemfdError {
    move |errno| MemfdError::Call {
        call,
        source: errno.into(),
    }
}

/// Asks the kernel whether `fd` is lane memory that its giver can't pull from under the receiver, and
/// how many bytes it has.
pub fn check_sealed(fd: BorrowedFd<'_>) -> Result<u64, MemfdError> {
    let seals = fcntl_get_seals(fd).map_err(|errno| MemfdError::NotMemory {
        source: errno.into(),
    })?;
    let missing = REQUIRED_SEALS.difference(seals);
    if !missing.is_empty() {
        return Err(MemfdError::Unsealed { missing });
    }
    // The size can't change after this: shrink and grow are sealed.
    let bytes = fstat(fd).map_err(failed("fstat"))?.st_size as u64;
    if bytes == 0 || bytes > BYTES_MAX || !bytes.is_multiple_of(4096) {
        return Err(MemfdError::Size { bytes });
    }
    Ok(bytes)
}

/// A mapping of a memfd, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is plain memory that no thread-local state refers to; it is only reached through
// atomics, which may be used from any thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn map(fd: BorrowedFd<'_>, bytes: usize, rights: ProtFlags) -> Result<Self, MemfdError> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a null hint lets the kernel choose an unused range, so no existing memory is touched; the
        // range is owned by the returned value, which alone unmaps it.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, rights, flags, fd, 0) }
            .map_err(failed("mmap"))?;
        let start = NonNull::new(start.cast()).ok_or(MemfdError::Size { bytes: 0 })?;
        Ok(Self {
            start,
            words: bytes / 8,
        })
    }
}

impl Words for Mapping {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `start` is page-aligned and maps `words * 8` bytes for as long as `self` lives. The file
        // can't shrink below that (F_SEAL_SHRINK is set before the first use, by `create`, or was checked by
        // `open`), so every access hits a page. The bytes may change at any time, which AtomicU64 permits. A
        // read-only mapping is only handed to `Peers`, which has no store.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, is not used after this, and slices of it borrow from `self`.
        if let Err(errno) = unsafe { munmap(self.start.as_ptr().cast(), self.words * 8) } {
            panic!("munmap of a lane's own mapping: {errno}");
        }
    }
}

/// Makes memory of `words` words (a whole number of pages), maps it writable here, and seals it against
/// everyone else. The descriptor is for the other side.
pub fn create(name: &str, words: usize) -> Result<(Mapping, OwnedFd), MemfdError> {
    let bytes = words * 8;
    if bytes == 0 || bytes as u64 > BYTES_MAX || !bytes.is_multiple_of(4096) {
        return Err(MemfdError::Size {
            bytes: bytes as u64,
        });
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 memfds can't be made non-executable.
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags),
        other => other,
    }
    .map_err(failed("memfd_create"))?;
    ftruncate(&fd, bytes as u64).map_err(failed("ftruncate"))?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(failed("F_ADD_SEALS"))?;
    let mapping = Mapping::map(fd.as_fd(), bytes, ProtFlags::READ | ProtFlags::WRITE)?;
    fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL)
        .map_err(failed("F_ADD_SEALS"))?;
    Ok((mapping, fd))
}

/// Maps memory that the other side made, for reading, after asking the kernel for its seals.
pub fn open(fd: BorrowedFd<'_>) -> Result<Mapping, MemfdError> {
    let bytes = check_sealed(fd)?;
    Mapping::map(fd, bytes as usize, ProtFlags::READ)
}
